"""Many questions from a file of JSON lines, answered over one session.

    {"image": "cat.png", "question": "what is this?"}  →  the same, with "answer", "bytes_picture", "bytes_up", …

Promises one output line for each input line, in order, written when it is done: what stops half-way can be
resumed, and a line that cannot be answered does not stop the rest. Leaves a lost server to whoever called: it
would fail every line that follows, and the file of answers to `batch_out`. The input's fields stay as they were
written; one that is named like one of the results is kept under its name and "_given": "answer" becomes
"answer_given".
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, fields, replace
from io import FileIO
from pathlib import Path
from typing import Any

from device_client.errors import NO_SERVER, EncoderError, UseError, exit_code
from device_client.link import NOT_BACK
from device_client.opened import Opened
from device_client.report import Report
from device_client.session import Sampling, Session
from shared.json_text import dumps, members
from shared.rpc.errors import TofcError
from shared.sentence import sentence
from shared.text import problem, split

RESULTS = {one.name for one in fields(Report)} - {"question"} | {"error"}
_PIPES = re.compile(r"/dev/(stdin|fd/\d+)|/proc/[^/]+/fd/\d+")  # names of what a shell hands over, a file or a pipe


@dataclass(frozen=True, kw_only=True)
class Line:
    """One input line. ``problem`` says why it cannot be asked."""

    number: int  # in the file, from 1
    given: dict[str, tuple[Any, str]] = field(default_factory=dict)  # value, and as written, by names free for them
    images: tuple[Path, ...] = ()
    question: str = ""
    problem: str = ""

    def written(self, outcome: dict[str, Any]) -> str:
        """The output line."""
        given = [f"{dumps(name)}: {text}" for name, (_, text) in self.given.items()]
        return "{" + ", ".join(given + [f"{dumps(name)}: {dumps(value)}" for name, value in outcome.items()]) + "}\n"


def read_lines(file: Path) -> list[Line]:
    """Every line that is not blank. Raises UseError if the file cannot be read or is empty, EncodingError."""
    try:
        found = split(file.read_bytes(), file)
    except OSError as error:
        raise UseError(f"{sentence(error)}; give a UTF-8 file of JSON lines") from None
    named = file.is_file() and not _PIPES.fullmatch(str(file))
    folder = file.parent if named else Path()
    lines = [_parse(number, raw, folder) for number, raw in enumerate(found, 1) if raw.strip()]
    if not lines:
        raise UseError(
            f'{file} has no lines; each is an object like {{"image": "cat.png", "question": "what is this?"}}'
        )
    return lines


def _parse(number: int, raw: str, folder: Path) -> Line:
    if found := problem(raw):
        return Line(number=number, problem=f"not JSON: {found}")
    try:
        entries = members(raw)
    except ValueError as error:
        return Line(number=number, problem=str(error))
    given = {name: value for name, (value, _) in entries.items()}
    images = given.get("images", [given["image"]] if "image" in given else None)
    question = given.get("question")
    line = Line(number=number, given=_renamed(entries))
    if not isinstance(images, list) or not images or not all(isinstance(one, str) and one for one in images):
        return replace(line, problem='no "image" (a path) and no "images" (a list of paths)')
    if not isinstance(question, str) or not question.strip():
        return replace(line, problem='no "question", or an empty one')
    for one in images:
        try:
            os.fsencode(one)
        except UnicodeEncodeError:
            encoding = sys.getfilesystemencoding()
            return replace(line, problem=f"{one!r} is not a file name in {encoding}; check its source, or the locale")
        if "\0" in one:
            return replace(line, problem=f"the path {one!r} holds a zero character, which no file name has")
    return replace(line, images=tuple(folder / one for one in images), question=question)


def _renamed(found: dict[str, tuple[Any, str]]) -> dict[str, tuple[Any, str]]:
    """The input's fields, under names that are free for them."""
    kept = {name: value for name, value in found.items() if name not in RESULTS}
    for name in (name for name in found if name in RESULTS):
        free = f"{name}_given"
        while free in kept:
            free += "_given"
        kept[free] = found[name]
    return kept


async def run(
    session: Session,
    lines: list[Line],
    out: FileIO,
    *,
    sampling: Sampling,
    thinking: bool = False,
    timeout_s: float | None,
    complain: Callable[[str], None],
) -> AsyncIterator[bool]:
    """Answer ``lines`` and write to ``out``; yields after each line whether it was answered.

    Raises what the session raises when the server is gone (`UnavailableError`, …), or refuses the session.
    """
    opened = Opened(session)
    await session.connect()  # a refusal is the whole batch's, not the first line's
    for line in lines:
        try:
            if line.problem:
                raise UseError(line.problem)
            pictures = opened.take(line.images)
            answer = session.ask(pictures, line.question, sampling=sampling, thinking=thinking, timeout_s=timeout_s)
            report = await answer.result()
            outcome = {key: value for key, value in report.to_json().items() if key != "question"}
        except (ValueError, OSError, EncoderError, TofcError, MemoryError) as error:
            gone = getattr(error, "reason", "") == NOT_BACK  # this line may be good: --resume asks it again
            if gone or (exit_code(error) == NO_SERVER and not await _still_there(session, timeout_s)):
                raise
            if error is session.encoder.broken:  # no picture can be encoded
                raise
            outcome = {"error": sentence(error)}
            complain(f"line {line.number}: {outcome['error']}")
        _write(out, line.written(outcome))
        yield "error" not in outcome


def _write(out: FileIO, line: str) -> None:
    """All of it; what was written of a line when the disk is full is cut off by --resume."""
    data = line.encode()
    try:
        while data:
            data = data[out.write(data) :]
    except OSError as error:
        error.filename = out.name
        raise


async def _still_there(session: Session, timeout_s: float | None) -> bool:
    """Whether the server lives after a line went wrong on it: then only that line is bad."""
    try:
        await session.connect(timeout_s)
    except TofcError:
        return False
    return True
