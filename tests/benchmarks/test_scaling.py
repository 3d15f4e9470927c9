"""The simulation gives the same numbers for the same seed, agrees with what can be computed, and with its document."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling.arithmetic import needs
from benchmarks.scaling.pieces import RESULTS, Piece, Pieces, read
from benchmarks.scaling.simulation import Cluster, most_devices, simulate

ROOT = Path(__file__).resolve().parents[2]
ONE = Cluster(edges=1, engines=1)


@pytest.fixture
def pieces() -> Pieces:
    return read()


def with_values(pieces: Pieces, **values: float) -> Pieces:
    changed: dict[str, Piece] = {name: replace(getattr(pieces, name), value=value) for name, value in values.items()}
    return replace(pieces, **changed)


def test_the_same_seed_gives_the_same_numbers_and_another_one_others() -> None:
    first, again, other = (scaling.measure(seed=seed, quick=True) for seed in (0, 0, 1))
    assert first == again
    assert first["sweep"]["rows"] != other["sweep"]["rows"]


def test_an_idle_cluster_answers_after_what_its_parts_take(pieces: Pieces) -> None:
    found = simulate(pieces, ONE, 1, seed=0, warm_s=1.0, measured_s=7200.0)
    sent_s = pieces.round_trip_s.value + pieces.question_bytes.value / pieces.link_bytes_a_s.value
    prefill_s = pieces.step_s.value + pieces.step_token_s.value + pieces.rows * pieces.prefill_row_s.value
    least = sent_s + pieces.assemble_s.value + prefill_s
    fresh = pieces.decode_s.value + pieces.picture_bytes.value / pieces.link_bytes_a_s.value
    assert min(found.first_token_s) == pytest.approx(least)
    assert max(found.first_token_s) == pytest.approx(least + fresh)


def test_an_engine_at_its_limit_gives_as_many_tokens_as_its_steps_allow(pieces: Pieces) -> None:
    free = with_values(pieces, prefill_row_s=0.0, assemble_s=0.0, decode_s=0.0, token_cpu_s=0.0, question_cpu_s=0.0)
    found = simulate(free, ONE, 20_000, seed=0, warm_s=60.0, measured_s=10.0)
    places = free.engine_places.value
    assert found.tokens_a_s == pytest.approx(places / (free.step_s.value + places * free.step_token_s.value), rel=0.02)
    assert found.busiest == "engine places" and found.saturated


@pytest.mark.parametrize(
    ("slow", "busiest"),
    [("decode_s", "edge threads"), ("token_cpu_s", "event loops"), ("step_s", "engine places")],
)
def test_what_is_made_slow_is_what_saturates(pieces: Pieces, slow: str, busiest: str) -> None:
    base = getattr(pieces, slow).value
    found = most_devices(with_values(pieces, **{slow: base * 30}), ONE, seed=0, **scaling.QUICK)
    faster = most_devices(pieces, ONE, seed=0, **scaling.QUICK)
    assert found.busiest == busiest
    assert found.devices < faster.devices / 3 or busiest == "event loops"  # a loop delays ends, not first tokens


def test_twice_the_machines_serve_about_twice_the_devices(pieces: Pieces) -> None:
    one, two = (most_devices(pieces, Cluster(edges=n, engines=n), seed=0, **scaling.QUICK).devices for n in (1, 2))
    assert 1.7 <= two / one <= 2.3


def test_the_arithmetic_is_linear(pieces: Pieces) -> None:
    small, large = needs(pieces, 100), needs(pieces, 10_000)
    assert all(large[name] == pytest.approx(100 * value) for name, value in small.items())
    assert small["tokens/s"] == pytest.approx(100 / 60 * 64)


def test_the_document_has_the_tables_of_the_result() -> None:
    found = json.loads((RESULTS / "scaling.json").read_text(encoding="utf-8"))
    document = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    for table in scaling.tables(found).split("\n\n"):
        assert table in document
    assert found["pieces"] == {
        name: {"value": piece.value, "unit": piece.unit, "what": piece.what, "source": piece.source}
        for name, piece in read()
    }, "a benchmark was run again: run python -m benchmarks.scaling --json benchmarks/results/scaling.json too"
