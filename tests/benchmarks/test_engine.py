"""The engine's benchmark compares packed and in turns."""

from __future__ import annotations

import pytest

from benchmarks import engine


async def test_every_ratio_is_of_measured_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ANSWERS", {"64 tokens": 4, "2 tokens": 2})
    monkeypatch.setattr(engine, "CONVERSATION_ROWS", (90, 100))
    monkeypatch.setattr(engine, "SAMPLE_TOKENS", 6)
    monkeypatch.setattr(engine, "QUESTIONS", 4)
    found = await engine.measure(1, clients=(1, 3))
    assert all(value > 0 for value in found["medians"].values())
    assert found["ratios"]["in turns: 16 samples to 1"] > found["ratios"]["packed: 16 samples to 1"]
    assert len(found["medians"]) == 2 * (2 * 2 * 3 + 2 + 2)
