"""The count of launches: it sees launches, copies and waits, and none of them grows unseen."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from benchmarks.launches import ROOT, Launches, can_train, counted, serving, training

#: operators at most, and copies to the host and waits at most, of each line of benchmarks/results/launches.json
LIMITS = {
    "a view, 47 layers": (1570, 0),
    "a token, greedy, 36 layers": (1830, 1),
    "a token, sampled, 36 layers": (1830, 1),
    "a token of 8 answers of training, 2 layers": (125, 1),
    "a step through the decoder, 2 layers": (2400, 6),
    "a settling step": (280, 0.5),
}


def test_launches_copies_and_waits_are_told_apart() -> None:
    with counted() as found:
        x = torch.ones(2, device="cuda")  # made there
        y = (x.view(2, 1).T + x) * torch.zeros(2).to("cuda")
        assert y.cpu().tolist() == [[0, 0]]
        assert float(y[0, 0]) == 0 and y.tolist() == [[0, 0]]
        assert len(y.nonzero()) == 0
    assert found == Launches(operators=2, copies_to_gpu=1, copies_to_host=1, syncs=3)


@pytest.mark.parametrize("part", [serving, training])
def test_none_grows_unseen(part: Callable[[], dict[str, dict[str, float]]]) -> None:
    if part is training and not can_train():
        pytest.skip("needs `make lab`, or what `make test` installs beside the environment")
    found = part()
    names = list(LIMITS)
    assert list(found) == (names[4:] if part is training else names[:4])
    for name, one in found.items():
        operators, waits = LIMITS[name]
        assert 0 < one["operators"] <= operators, (name, one)
        assert one["copies_to_host"] + one["syncs"] <= waits, (name, one)
    stored = json.loads((ROOT / "benchmarks" / "results" / "launches.json").read_text())["launches"]
    assert stored.keys() == LIMITS.keys()
    for name, one in found.items():
        assert one["operators"] == pytest.approx(stored[name]["operators"], rel=0.02), "run the benchmark again"
