"""Files are read again when they change, and only then."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edge_server import file_reload
from edge_server.file_reload import ReloadedFiles


class Counted:
    def __init__(self, path: Path) -> None:
        self.path, self.reads = path, 0

    def __call__(self) -> str:
        self.reads += 1
        return self.path.read_text()


def test_a_file_that_stays_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    os.utime(file, (1, 1))
    read = Counted(file)
    now = ReloadedFiles([file], read)
    assert {now() for _ in range(100)} == {"one"} and read.reads == 1
    file.write_text("two")
    assert now() == "two" and read.reads == 2


def test_a_change_within_a_tick_of_the_clock_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    stamp = file.stat().st_mtime_ns
    read = Counted(file)
    now = ReloadedFiles([file], read)
    file.write_text("two")
    os.utime(file, ns=(stamp, stamp))  # as long, in the same file, at the same time
    really = time.time_ns
    monkeypatch.setattr(file_reload.time, "time_ns", lambda: really() + 60 * file_reload.SETTLED_NS)
    assert {now() for _ in range(100)} == {"two"} and read.reads == 2


def test_a_pipe_is_read_once() -> None:
    reads, writes = os.pipe()
    os.write(writes, b"one")
    os.close(writes)
    now = ReloadedFiles([Path(f"/dev/fd/{reads}")], lambda: os.read(reads, 9))
    assert [now(), now()] == [b"one", b"one"]
    os.close(reads)
