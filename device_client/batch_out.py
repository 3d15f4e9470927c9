"""The file of a batch's answers: found as an earlier batch left it, and written by one batch at a time.

Promises that nothing is written into a file that holds anything but answers to these questions, that a second batch is
refused while one writes (the lock ends with its process, however that ends), and that a file which got nothing is not
left behind. Leaves the lines to `batch`.
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
from device_client.errors import UseError
from shared.json_text import members
from shared.text import MARK

try:
    import fcntl
except ImportError:  # not a Unix: two batches at once are the user's own care
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """An open file to append answers to. Of ``done`` lines, which it has already, ``failed`` hold an error."""

    file: FileIO
    done: int = 0
    failed: int = 0


@contextmanager
def open_out(out: Path, lines: list[Line], *, questions: Path, resume: bool) -> Iterator[Answers]:
    """Open ``out`` to append to.

    Raises UseError if it has something without ``resume``, holds something else than the answers to ``lines``, is the
    file of questions itself, or is written by another batch.
    """
    if not out.parent.is_dir():
        raise UseError(f"the folder of --out {out} does not exist; make it first")
    with suppress(OSError):
        if out.is_file() and os.path.samefile(out, questions):
            raise UseError(f"--out {out} is the file of --batch itself; name another file for the answers")
    if out.exists() and not out.is_file() and not out.is_dir():  # a pipe, or what stdout is
        if resume:
            raise UseError(f"--out {out} is not a file; only a file can be resumed, so leave --resume out")
        with out.open("wb", buffering=0) as file:
            yield Answers(file=file)
        return
    with _locked(out) as file:
        done = failed = 0
        if file.seek(0, os.SEEK_END):
            if not resume:
                raise UseError(f"{out} exists; resume where it ends with --resume, or name another file with --out")
            done, failed = _kept(file, out, lines)
        yield Answers(file=file, done=done, failed=failed)


@contextmanager
def _locked(out: Path) -> Iterator[FileIO]:
    """The file, made where there is none, as its only writer; removed where it is still empty in the end."""
    made = not os.path.lexists(out)
    while True:
        file = out.open("a+b", buffering=0)  # a full disk is told when a line is written, not again at the end
        try:
            if fcntl is not None:
                with suppress(NotImplementedError, _NoLocks):
                    _lock(file, out)
            if _is_named(file, out):
                break
        except BaseException:
            file.close()
            raise
        file.close()  # removed by a batch that ended meanwhile
    with file:
        try:
            yield file
        finally:
            with suppress(OSError):
                if made and fcntl is not None and not os.fstat(file.fileno()).st_size:
                    out.unlink()


class _NoLocks(OSError):
    """A file system that has none."""


def _lock(file: FileIO, out: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UseError(f"another batch is writing to {out}; wait until it has ended, or name another --out") from None
    except OSError as error:
        raise _NoLocks from error


def _is_named(file: FileIO, out: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), out.stat())
    except FileNotFoundError:
        return False


def _kept(file: FileIO, out: Path, lines: list[Line]) -> tuple[int, int]:
    """(lines that are done, how many of them failed); what a process that ended within a line left is cut off."""
    file.seek(0)
    *done, rest = file.read().split(b"\n")
    failed = 0
    for line, written in zip(lines, done, strict=False):
        found = _answer(line, written)
        if found is None:
            raise UseError(
                f"{out} does not hold the answers to this file: line {line.number} differs; name another --out"
            )
        failed += found == "error"
    if len(done) > len(lines) or (rest and len(done) == len(lines)):
        has = len(done) + bool(rest)
        raise UseError(f"{out} has {has} lines, the questions only {len(lines)}; name another --out")
    if rest:
        line = lines[len(done)]
        if found := _answer(line, rest):  # whole but for its end
            file.write(b"\n")
            return len(done) + 1, failed + (found == "error")
        begun = line.written({})[:-2].encode()  # without its end
        if _members(rest) is not None or not (rest.startswith(begun) or begun.startswith(rest)):
            raise UseError(
                f"{out} ends in what is not the beginning of an answer to line {line.number}; name another --out"
            )
        file.truncate(file.tell() - len(rest))
    return len(done), failed


def _answer(line: Line, written: bytes) -> str | None:
    """ "answer" or "error", where that was written for a line beside all that was given; else None."""
    found = _members(written)
    if found is None or any(name not in found or found[name] != value for name, (value, _) in line.given.items()):
        return None
    results = found.keys() - line.given.keys()
    return next((name for name in ("error", "answer") if name in results <= RESULTS), None)


def _members(written: bytes) -> dict[str, Any] | None:
    try:
        return {name: value for name, (value, _) in members(written.decode().lstrip(MARK).strip()).items()}
    except ValueError:
        return None
