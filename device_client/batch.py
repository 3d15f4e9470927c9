"""Many questions from a file of JSON lines, answered over one session.

    {"image": "cat.png", "question": "what is this?"}  →  the same, with "answer", "bytes_picture", "bytes_up", …

Promises one output line for each input line, in order, written when it is done: what stops half-way can be
resumed, and a line that cannot be answered does not stop the rest. Leaves a lost server to whoever called: it
would fail every line that follows. A field of the input that is named like one of the results is kept under its
name and "_given": "answer" becomes "answer_given".
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from device_client.errors import NO_SERVER, EncoderError, UseError, exit_code
from device_client.link import NOT_BACK
from device_client.picture import Picture
from device_client.report import Report
from device_client.session import Sampling, Session
from shared.rpc.errors import TofcError
from shared.sentence import sentence

_KEPT = 8  # opened pictures, as packets: questions about one picture usually follow each other
_RESULTS = {field.name for field in fields(Report)} - {"question"} | {"error"}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One input line. ``problem`` says why it cannot be asked."""

    number: int  # in the file, from 1
    fields: dict[str, Any]
    images: tuple[Path, ...] = ()
    question: str = ""
    problem: str = ""


def read_lines(file: Path) -> list[Line]:
    """Every line that is not blank. Raises UseError if the file cannot be read or is empty."""
    try:
        text = file.read_text(encoding="utf-8", errors="surrogateescape")  # a line that is none fails alone
    except OSError as error:
        raise UseError(f"{sentence(error)}; give a UTF-8 file of JSON lines") from None
    lines = [_parse(number, raw, file.parent) for number, raw in enumerate(text.split("\n"), 1) if raw.strip()]
    if not lines:
        raise UseError(
            f'{file} has no lines; each is an object like {{"image": "cat.png", "question": "what is this?"}}'
        )
    return lines


def _parse(number: int, raw: str, folder: Path) -> Line:
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        where = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
        return Line(number=number, fields={}, problem=f"not JSON: {where}")
    if not isinstance(fields, dict):
        return Line(number=number, fields={}, problem=f"a {type(fields).__name__}, where an object is needed")
    images = fields.get("images", [fields["image"]] if "image" in fields else None)
    question = fields.get("question")
    if not isinstance(images, list) or not images or not all(isinstance(one, str) and one for one in images):
        return Line(number=number, fields=fields, problem='no "image" (a path) and no "images" (a list of paths)')
    if not isinstance(question, str) or not question.strip():
        return Line(number=number, fields=fields, problem='no "question", or an empty one')
    return Line(number=number, fields=fields, images=tuple(folder / one for one in images), question=question)


def prepare_out(out: Path, lines: list[Line], *, resume: bool) -> tuple[int, int]:
    """Make ``out`` ready to append to; returns how many lines it has already, and how many of them failed.

    Raises UseError if it exists without ``resume``, or holds something else than the answers to ``lines``.
    """
    if not out.parent.is_dir():
        raise UseError(f"the folder of --out {out} does not exist; make it first")
    if not out.exists():
        return 0, 0
    if not resume:
        raise UseError(f"{out} exists; go on where it ends with --resume, or name another file with --out")
    data = out.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    done = whole.splitlines()
    for line, written in zip(lines, done, strict=False):
        if not _belongs(line, written):
            raise UseError(
                f"{out} does not hold the answers to this file: line {line.number} differs; name another --out"
            )
    if len(done) > len(lines):
        raise UseError(f"{out} has {len(done)} lines, the questions only {len(lines)}; name another --out")
    if len(whole) < len(data):  # the process ended within a line
        with out.open("r+b") as file:
            file.truncate(len(whole))
    return len(done), sum("error" in json.loads(line) for line in done)


def _belongs(line: Line, written: bytes) -> bool:
    try:
        found = json.loads(written)
    except ValueError:
        return False
    asked = ("image", "images", "question")
    return isinstance(found, dict) and all(found.get(name) == line.fields.get(name) for name in asked)


async def run(
    session: Session,
    lines: list[Line],
    out: Path,
    *,
    sampling: Sampling,
    thinking: bool = False,
    timeout_s: float | None,
    complain: Callable[[str], None],
) -> AsyncIterator[bool]:
    """Answer ``lines`` and append to ``out``; yields after each line whether it was answered.

    Raises what the session raises when the server is gone (`UnavailableError`, …), or refuses the session.
    """
    opened: OrderedDict[Path, Picture] = OrderedDict()
    await session.connect()  # a refusal is the whole batch's, not the first line's
    # Half a surrogate pair, which UTF-8 cannot hold, becomes \ud800: JSON's own escape.
    with out.open("a", encoding="utf-8", errors="backslashreplace") as file:
        for line in lines:
            try:
                if line.problem:
                    raise UseError(line.problem)
                pictures = _open(session, line.images, opened)
                answer = session.ask(pictures, line.question, sampling=sampling, thinking=thinking, timeout_s=timeout_s)
                report = await answer.result()
                outcome = {key: value for key, value in report.to_json().items() if key != "question"}
            except (ValueError, OSError, EncoderError, TofcError) as error:
                gone = getattr(error, "reason", "") == NOT_BACK  # this line may be good: --resume asks it again
                if gone or (exit_code(error) == NO_SERVER and not await _still_there(session, timeout_s)):
                    raise
                if error is session.encoder.broken:  # no picture can be encoded
                    raise
                outcome = {"error": sentence(error)}
                complain(f"line {line.number}: {outcome['error']}")
            file.write(json.dumps({**_given(line.fields), **outcome}, ensure_ascii=False) + "\n")
            file.flush()
            yield "error" not in outcome


def _given(found: dict[str, Any]) -> dict[str, Any]:
    """The input's fields, under names that are free for them."""
    kept = {name: value for name, value in found.items() if name not in _RESULTS}
    for name in (name for name in found if name in _RESULTS):
        free = f"{name}_given"
        while free in kept:
            free += "_given"
        kept[free] = found[name]
    return kept


async def _still_there(session: Session, timeout_s: float | None) -> bool:
    """Whether the server lives after a line went wrong on it: then only that line is bad."""
    try:
        await session.connect(timeout_s)
    except TofcError:
        return False
    return True


def _open(session: Session, paths: Sequence[Path], opened: OrderedDict[Path, Picture]) -> list[Picture]:
    """A line's pictures. Of earlier lines' only packets are kept: the pixels of a few would fill the memory."""
    for path in [path for path, picture in opened.items() if picture.image is not None and path not in paths]:
        del opened[path]  # the server had it, or it could not be encoded
    pictures = []
    for path in paths:
        if path not in opened:
            opened[path] = session.open(path)
        opened.move_to_end(path)
        pictures.append(opened[path])
    while len(opened) > _KEPT:
        opened.popitem(last=False)
    return pictures
