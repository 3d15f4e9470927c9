"""The benchmark of many clients: rows of a real server, ratios, memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import read_ahead
from benchmarks.load import __main__ as load
from benchmarks.load import clients

MEASURED = not Path("/proc/self/stat").exists()


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["load", "--json", str(out), *arguments])
    load.main()
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


@pytest.mark.skipif(MEASURED, reason="reads CPU times as Linux tells them")
def test_a_row_for_each_number_of_clients(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(load, "LEAST", 2)
    monkeypatch.setattr(load, "LEAST_SHORT", 2)
    found = run(monkeypatch, tmp_path / "load.json", "--clients", "1", "3", "--tokens", "9", "--questions", "1")
    assert found.keys() == {"embedded, 9 tokens", "embedded, own answers"}
    rows = found["embedded, 9 tokens"]["rows"]
    assert [(row["clients"], row["questions"], row["tokens_an_answer"]) for row in rows] == [(1, 2, 9.0), (3, 3, 9.0)]
    for row in (*rows, *found["embedded, own answers"]["rows"]):
        assert row["refused"] == 0 and 0 < row["first_token_p50_ms"] <= row["first_token_p95_ms"]
    assert all(row["tokens_an_answer"] < 9 for row in found["embedded, own answers"]["rows"])


@pytest.mark.skipif(MEASURED, reason="reads memory as Linux tells it")
def test_idle_sessions_and_a_mixed_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(load, "IDLE_S", 0.1)
    monkeypatch.setattr("benchmarks.load.soak.EVERY_S", 0.1)
    arguments = ["--idle-sessions", "40", "--soak", "0.05", "--clients", "3", "--name", "quick"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.trust.soak.FLAT", 100.0)  # caches fill
        found = run(monkeypatch, tmp_path / "load.json", *arguments)
    idle, soak = found["idle, quick"], found["soak, quick"]
    assert (idle["sessions"], idle["lost"], idle["faults"]) == (40, 0, []) and idle["server_mb"] < 100
    assert soak["faults"] == [] and soak["answers"] > 0 and soak["sessions"] >= 3


def test_ratios_compare_16_clients_with_one() -> None:
    rows = [
        {"clients": count, "tokens_s": 100.0 * count, "questions_s": 3.0 * count, "first_token_p95_ms": 10.0 + count}
        for count in (1, 4, 16)
    ]
    assert load.ratios(rows) == {
        "speedup_16": 16.0,
        "questions_speedup_16": 16.0,
        "first_token_p95_ratio_16": round(26 / 11, 1),
    }
    assert load.ratios(rows[:2]) == {}


def test_a_run_without_answers_ends_with_the_reasons() -> None:
    with pytest.raises(SystemExit, match="no question was answered: CACHE_FULL, ENGINE_LOST"):
        clients.row(clients.Seen(errors=["ENGINE_LOST", "CACHE_FULL", "ENGINE_LOST"]), 1, 1.0, 1.0, 1.0)


@pytest.mark.skipif(MEASURED, reason="starts servers as the load test does")
async def test_reading_ahead_is_compared_over_a_link() -> None:
    found = await read_ahead.measure(read_ahead.NANO, 1, (50_000,), 0)
    result = found["50000 bytes/s"]
    assert result.keys() == {*read_ahead.MODES, "ratios", "prompt tokens"} and result["prompt tokens"] > 50
    assert result["ratios"].keys() == result["when all are there"].keys()
