"""Scores of a set, overall and by category, with 95 % intervals and the share of the uncompressed score.

Promises the definitions of lmms-eval and VLMEvalKit, from units that may be drawn again and again. Leaves what a unit
is to the sets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tofc_lab.bench.question import Unit

Headline = Callable[[Sequence[Unit]], dict[str, float]]
Key = Callable[[Unit], str | None]
DRAWS, SEED = 1000, 0


def mean(units: Sequence[Unit]) -> float:
    """Return the mean value; 0 of none."""
    return sum(unit.value for unit in units) / len(units) if units else 0.0


def accuracy(units: Sequence[Unit]) -> dict[str, float]:
    """Return the share of right answers, from 0 to 1."""
    return {"accuracy": mean(units)}


def grouped(units: Iterable[Unit], key: Key) -> dict[str, list[Unit]]:
    """Return the units that have a key, by it, sorted."""
    found: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        if (name := key(unit)) is not None:
            found[name].append(unit)
    return dict(sorted(found.items()))


def by_category(units: Sequence[Unit]) -> dict[str, dict[str, float]]:
    """Return the accuracy of each category and subcategory that the file has."""
    keys: tuple[tuple[str, Key], ...] = (("category", lambda u: u.category), ("subcategory", lambda u: u.subcategory))
    return {name: {one: mean(some) for one, some in grouped(units, key).items()} for name, key in keys}


def intervals(
    headline: Headline, units: Sequence[Unit], reference: Sequence[Unit] = ()
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return 95 % intervals of each score, and of its share of the score of `reference`.

    Pictures are drawn with replacement, the same ones for both. Scores of `reference` that are 0 are left out.
    """
    clusters = _clusters(units, reference)
    rng = np.random.default_rng(SEED)
    scores: dict[str, list[float]] = defaultdict(list)
    shares: dict[str, list[float]] = defaultdict(list)
    for _ in range(DRAWS):
        drawn = [clusters[at] for at in rng.integers(len(clusters), size=len(clusters))]
        found = headline([unit for ours, _ in drawn for unit in ours])
        whole = headline([unit for _, theirs in drawn for unit in theirs]) if reference else {}
        for name, value in found.items():
            scores[name].append(value)
            if whole.get(name):
                shares[name].append(value / whole[name])
    return _quantiles(scores), _quantiles(shares)


def _clusters(units: Sequence[Unit], reference: Sequence[Unit]) -> list[tuple[list[Unit], list[Unit]]]:
    found: dict[str, tuple[list[Unit], list[Unit]]] = defaultdict(lambda: ([], []))
    for place, some in enumerate((units, reference)):
        for unit in some:
            found[unit.picture][place].append(unit)
    return list(found.values())


def _quantiles(drawn: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: [float(np.quantile(values, at)) for at in (0.025, 0.975)] for name, values in drawn.items()}
