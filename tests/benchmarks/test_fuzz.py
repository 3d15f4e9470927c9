"""The fuzzer itself: a short run of the command, and that it records what it finds."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path
from random import Random
from typing import ClassVar

import pytest

from benchmarks.fuzz.packets import Packets
from benchmarks.fuzz.worker import Runner, target

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """Enable logging again, which the target of streams disables in its process, here for all tests."""
    yield
    logging.disable(logging.NOTSET)


def fuzz(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.fuzz", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_short_run_finds_nothing_and_resumes_where_it_stopped(tmp_path: Path) -> None:
    if util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed; it has no wheel for this machine or Python")
    out = tmp_path / "fuzz.json"
    for cases in (2000, 3000):
        done = fuzz("--cases", cases, "--folder", tmp_path / "fuzz", "--out", out)
        assert done.returncode == 0, done.stdout + done.stderr
        result = json.loads(out.read_text())
        assert result["cases"] == cases and result["findings"] == {}
    packet, stream = result["targets"]["packet"], result["targets"]["stream"]
    assert packet["edges"] > 60 and stream["edges"] > 300, "the code under test is not instrumented"
    outcomes = packet["outcomes"]
    assert sum(outcomes[one] for one in ("TAKEN", "NOT_CANONICAL")) > packet["cases"] / 4, (
        "too few cases get past the checksum"
    )
    assert len(list((tmp_path / "fuzz" / "corpus" / "packet").iterdir())) > 20


class Fragile:
    """A target with a defect."""

    name = "packet"
    longest: ClassVar[int] = 10

    def seeds(self) -> Iterator[bytes]:
        yield b"good"

    def run(self, data: bytes) -> str:
        return "GOOD" if data == b"good" else str(1 // (len(data) - 3))

    def mutate(self, data: bytes, rng: Random, blind: Callable[[bytes], bytes]) -> bytes:
        return blind(data)


def test_a_finding_is_recorded_and_the_run_continues(tmp_path: Path) -> None:
    (tmp_path / "findings").mkdir()
    runner = Runner(Fragile(), tmp_path, tmp_path, cases=8)
    for data in (b"good", b"bad", b"god", b"dog", b"odd", b"big", b"good", b"good"):
        runner.one(data)
    state = json.loads((tmp_path / "state.json").read_text())
    assert (state["cases"], state["outcomes"], sum(state["findings"].values())) == (8, {"GOOD": 3}, 5)
    assert "ZeroDivisionError at test_fuzz.py" in next(iter(state["findings"]))
    kept = list((tmp_path / "findings").glob("packet-*"))
    assert len(kept) == 6  # three inputs and their tracebacks
    assert all(one.name.startswith("packet-") for one in kept)


def test_a_case_can_be_replayed(tmp_path: Path) -> None:
    case = tmp_path / "packet-0"
    case.write_bytes(next(Packets().seeds()))
    assert fuzz("--replay", case).stdout == "TAKEN\n"
    assert "is not a finding" in fuzz("--replay", Path(__file__)).stderr


@pytest.mark.parametrize("name", ["packet", "stream"])
def test_the_same_seed_makes_the_same_cases(name: str) -> None:
    fuzzed = target(name)
    seed = list(fuzzed.seeds())[-1]
    made = [[fuzzed.mutate(seed, Random(number), bytes) for number in range(50)] for _ in range(2)]
    assert made[0] == made[1] and len(set(made[0])) > 25
