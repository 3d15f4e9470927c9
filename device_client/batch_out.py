"""The file of a batch's answers: continued where an earlier batch stopped, and written by one batch at a time.

Promises that nothing is written to a file that holds anything but answers to these questions, that a second batch is
refused while one writes (the lock ends with its process, however that ends), and that a new file which received nothing
is removed. Leaves the content of the lines to `batch`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from device_client.batch import RESULTS, Line
from tofc.errors import UsageError
from tofc.json_text import members
from tofc.text import MARK

try:
    import fcntl
except ImportError:  # not Unix: nothing stops a second batch that writes to the same file
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A file that is open for appending answers. It has `done` lines already; `failed` of them hold an error."""

    file: FileIO
    done: int = 0
    failed: int = 0


@contextmanager
def open_out(out: Path, lines: list[Line], *, questions: Path, resume: bool) -> Iterator[Answers]:
    """Open `out` for appending.

    Raises UsageError if it is not empty and `resume` is not set, holds anything but answers to `lines`, is the file of
    questions itself, or another batch is writing to it.
    """
    if not out.parent.is_dir():
        raise UsageError(f"the folder of --out {out} does not exist; make it first")
    with suppress(OSError):
        if out.is_file() and os.path.samefile(out, questions):
            raise UsageError(f"--out {out} is the file of --batch itself; name another file for the answers")
    if out.exists() and not out.is_file() and not out.is_dir():  # a pipe or a terminal, for instance /dev/stdout
        if resume:
            raise UsageError(f"--out {out} is not a file; only a file can be resumed, so leave --resume out")
        with out.open("wb", buffering=0) as file:
            yield Answers(file=file)
        return
    with _locked(out) as file:
        done = failed = 0
        if file.seek(0, os.SEEK_END):
            if not resume:
                raise UsageError(f"{out} exists; resume where it ends with --resume, or name another file with --out")
            done, failed = _kept(file, out, lines)
        yield Answers(file=file, done=done, failed=failed)


@contextmanager
def _locked(out: Path) -> Iterator[FileIO]:
    """Open the file as its only writer, created if necessary; remove it in the end if it is still empty."""
    created = not os.path.lexists(out)
    while True:
        file = out.open("a+b", buffering=0)  # a full disk is reported when a line is written
        try:
            if fcntl is not None:
                with suppress(NotImplementedError, _NoLocks):
                    _lock(file, out)
            if _is_at(file, out):
                break
        except BaseException:
            file.close()
            raise
        file.close()  # another batch has removed it since it was opened
    with file:
        try:
            yield file
        finally:
            with suppress(OSError):
                if created and fcntl is not None and not os.fstat(file.fileno()).st_size:
                    out.unlink()


class _NoLocks(OSError):
    """A file system without locks."""


def _lock(file: FileIO, out: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"another batch is writing to {out}; wait until it has ended, or name another --out") from None
    except OSError as error:
        raise _NoLocks from error


def _is_at(file: FileIO, out: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), out.stat())
    except FileNotFoundError:
        return False


def _kept(file: FileIO, out: Path, lines: list[Line]) -> tuple[int, int]:
    """Return (lines that are done, how many of them failed); remove a last line that is incomplete."""
    file.seek(0)
    *done, rest = file.read().split(b"\n")
    failed = 0
    for line, written in zip(lines, done, strict=False):
        found = _answer(line, written)
        if found is None:
            raise UsageError(
                f"{out} does not hold the answers to this file: line {line.number} differs; name another --out"
            )
        failed += found == "error"
    if len(done) > len(lines) or (rest and len(done) == len(lines)):
        has = len(done) + bool(rest)
        raise UsageError(f"{out} has {has} lines, but there are only {len(lines)} questions; name another --out")
    if rest:
        line = lines[len(done)]
        if found := _answer(line, rest):  # complete but for its line end
            file.write(b"\n")
            return len(done) + 1, failed + (found == "error")
        start = line.written({})[:-2].encode()  # without its end
        if _members(rest) is not None or not (rest.startswith(start) or start.startswith(rest)):
            raise UsageError(
                f"{out} ends with text that is not the start of an answer to line {line.number}; name another --out"
            )
        file.truncate(file.tell() - len(rest))
    return len(done), failed


def _answer(line: Line, written: bytes) -> str | None:
    """Return "answer" or "error", whichever `written` has beside the line's given fields; None if it has neither."""
    found = _members(written)
    if found is None or any(name not in found or found[name] != value for name, (value, _) in line.given.items()):
        return None
    results = found.keys() - line.given.keys()
    return next((name for name in ("error", "answer") if name in results <= RESULTS), None)


def _members(written: bytes) -> dict[str, Any] | None:
    try:
        return {name: value for name, (value, _) in members(written.decode().lstrip(MARK).strip()).items()}
    except (UnicodeDecodeError, UsageError):
        return None
