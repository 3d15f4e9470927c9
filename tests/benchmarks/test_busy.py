"""The benchmark of a busy machine compares every setting with one thread, and leaves no endless loop behind."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks import busy


def loops() -> set[str]:
    """Return the child processes that keep a core busy."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid() and b"while True" in (process / "cmdline").read_bytes():
                found.add(process.name)
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts processes as Linux does")
def test_every_setting_is_measured_beside_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(threads == 1 for threads, _ in busy.settings().values())
    monkeypatch.setattr(busy, "settings", lambda: {"one thread": (1, {}), "asleep": (2, dict([busy.PASSIVE]))})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    found = busy.measure(busy.NANO, 2)
    assert found.keys() == {"0 busy loops", "1 busy loops"}
    for by_setting in found.values():
        assert by_setting["one thread"]["of one thread's median"] == 1
        assert all(0 < one["fastest ms"] <= one["median ms"] <= one["slowest tenth ms"] for one in by_setting.values())
    assert not loops()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts processes as Linux does")
def test_loops_keep_cores_busy_and_then_end() -> None:
    with busy.busy(2):
        assert len(loops()) == 2
    assert not loops()
