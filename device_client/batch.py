"""Many questions from a file of JSON lines, answered over one session.

    {"image": "cat.png", "question": "what is this?"}  →  the same, with "answer", "bytes_picture", "bytes_up", …

Promises one output line for each input line, in order, written as soon as it is done: a batch that was stopped can be
resumed, and a line that cannot be answered does not stop the others. The input's fields are copied exactly as they were
written; one that is named like a result gets "_given" added to its name: "answer" becomes "answer_given". Leaves the
file of answers to `batch_out`. A lost server ends the batch with its error: later lines would fail too.
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

from device_client.exit_codes import NO_SERVER, exit_code
from device_client.link import NOT_BACK
from device_client.opened_pictures import OpenedPictures
from device_client.reasoning import Reasoning
from device_client.report import Report
from device_client.sampling import Sampling
from device_client.session import PLAIN, Session
from tofc.error_text import describe
from tofc.errors import CallError, Error, UsageError
from tofc.json_text import dumps, members
from tofc.text import encoding_problem, split

RESULTS = {one.name for one in fields(Report)} - {"question"} | {"error"}
_PIPES = re.compile(r"/dev/(stdin|fd/\d+)|/proc/[^/]+/fd/\d+")  # how a shell names a file or pipe that it passes on


@dataclass(frozen=True, kw_only=True)
class Line:
    """One input line; `problem` says why it cannot be asked, or is empty."""

    number: int  # in the file, from 1
    given: dict[str, tuple[Any, str]] = field(default_factory=dict)  # name in the output → (value, its text)
    images: tuple[Path, ...] = ()
    question: str = ""
    problem: str = ""

    def written(self, outcome: dict[str, Any]) -> str:
        """Return the output line: the given fields, then those of `outcome`."""
        given = [f"{dumps(name)}: {text}" for name, (_, text) in self.given.items()]
        return "{" + ", ".join(given + [f"{dumps(name)}: {dumps(value)}" for name, value in outcome.items()]) + "}\n"


def read_lines(file: Path) -> list[Line]:
    """Return every line that is not blank. Raises UsageError if the file cannot be read or is empty; EncodingError."""
    try:
        found = split(file.read_bytes(), file)
    except OSError as error:
        raise UsageError(f"{describe(error)}; give a UTF-8 file of JSON lines") from None
    has_folder = file.is_file() and not _PIPES.fullmatch(str(file))
    folder = file.parent if has_folder else Path()
    lines = [_parse(number, raw, folder) for number, raw in enumerate(found, 1) if raw.strip()]
    if not lines:
        raise UsageError(
            f'{file} has no lines; write an object like {{"image": "cat.png", "question": "what is this?"}} on each'
        )
    return lines


def _parse(number: int, raw: str, folder: Path) -> Line:
    if found := encoding_problem(raw):
        return Line(number=number, problem=f"not JSON: {found}")
    try:
        entries = members(raw)
    except UsageError as error:
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
            return replace(line, problem=f"the path {one!r} holds a zero character; file names do not have any")
    return replace(line, images=tuple(folder / one for one in images), question=question)


def _renamed(found: dict[str, tuple[Any, str]]) -> dict[str, tuple[Any, str]]:
    """Return the input's fields, with new names for those named like a result."""
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
    reasoning: Reasoning = PLAIN,
    thinking: bool = False,
    timeout_s: float | None,
    warn: Callable[[str], None],
) -> AsyncIterator[bool]:
    """Answer `lines` and write to `out`; yield after each line whether it was answered.

    `warn` gets a message for each line that was not. Raises what the session raises if the server is gone
    (`UnavailableError`, …) or refuses the session.
    """
    opened = OpenedPictures(session)
    await session.connect()  # a refusal ends the batch instead of failing its first line
    for line in lines:
        try:
            if line.problem:
                raise UsageError(line.problem)
            pictures = opened.open(line.images)
            answer = session.ask(
                pictures,
                line.question,
                sampling=sampling,
                thinking=thinking,
                reasoning=reasoning,
                timeout_s=timeout_s,
            )
            report = await answer.result()
            outcome = {key: value for key, value in report.to_json().items() if key != "question"}
        except (Error, OSError, MemoryError) as error:
            gone = getattr(error, "reason", "") == NOT_BACK
            if gone or (exit_code(error) == NO_SERVER and not await _still_there(session, timeout_s)):
                raise  # not this line's fault: --resume asks it again
            if error is session.encoder.broken:  # the model could not be loaded: no line can be answered
                raise
            outcome = {"error": describe(error)}
            warn(f"line {line.number}: {outcome['error']}")
        _write(out, line.written(outcome))
        yield "error" not in outcome


def _write(out: FileIO, line: str) -> None:
    """Write the whole line; if the disk is full after a part of it, --resume will remove that part."""
    data = line.encode()
    try:
        while data:
            data = data[out.write(data) :]
    except OSError as error:
        error.filename = out.name
        raise


async def _still_there(session: Session, timeout_s: float | None) -> bool:
    """Return whether the server can be reached after a line failed: then only that line is at fault."""
    try:
        await session.connect(timeout_s)
    except CallError:
        return False
    return True
