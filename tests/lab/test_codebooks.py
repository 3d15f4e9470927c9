"""Vector quantisation as a rival: what its indices cost, and what comes back."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tofc_lab.rate_distortion.codebooks import Codebook
from tofc_lab.rate_distortion.index_contexts import CountContext, NetContext

SIDE, PROJECTOR = 6, np.random.default_rng(1).normal(size=(5, 8))


def views(count: int) -> NDArray[np.float32]:
    """Return features [count · 36, 8]: rows of background or of one of five things, and some noise."""
    rng = np.random.default_rng(0)
    things = rng.normal(size=(6, 8)) * 4
    kinds = np.where(rng.random((count, SIDE)) < 0.7, 0, rng.integers(1, 6, (count, SIDE)))
    cells = np.repeat(kinds, SIDE, axis=1).ravel()
    noisy: NDArray[np.float32] = (things[cells] + rng.normal(size=(len(cells), 8)) * 0.1).astype(np.float32)
    return noisy


def test_every_feature_becomes_that_of_a_near_codeword() -> None:
    x = views(100)
    found, cells, size = Codebook.fit(x, PROJECTOR, 64, 0.0).reduce(36)(x[:36])
    assert (cells == np.arange(36)).all()
    assert size == 2 + 36 * 6 / 8  # log2 of 64 codewords
    assert np.abs(found - x[:36]).mean() < 0.2


@pytest.mark.parametrize("n", [36, 12])
def test_an_entropy_constrained_codebook_needs_fewer_bytes(n: int) -> None:
    x = views(100)
    plain, constrained = (Codebook.fit(x, PROJECTOR, 64, weight).reduce(n) for weight in (0.0, 5.0))
    of = [x[at : at + 36] for at in range(0, 3600, 36)]
    assert sum(constrained(view)[2] for view in of) < 0.7 * sum(plain(view)[2] for view in of)


@pytest.mark.parametrize("kind", [CountContext, NetContext])
def test_neighbours_tell_what_an_index_is(kind: type[CountContext | NetContext]) -> None:
    x = views(200)
    book = Codebook.fit(x[:3600], PROJECTOR, 64, 5.0)
    context = kind.fit(book.index(x[:3600]).reshape(-1, SIDE, SIDE), -book.bits)
    unseen = [x[at : at + 36] for at in range(3600, 7200, 36)]
    alone, beside = (sum(book.reduce(36, one)(view)[2] - 2 for view in unseen) for one in (None, context))
    assert beside < 0.5 * alone


@pytest.mark.parametrize("kind", [CountContext, NetContext])
def test_each_index_is_predicted_from_those_before_it(kind: type[CountContext | NetContext]) -> None:
    """Probabilities of the last index sum to one; those of earlier ones do not depend on it."""
    x = views(50)
    book = Codebook.fit(x, PROJECTOR, 16, 0.1)
    context = kind.fit(book.index(x).reshape(-1, SIDE, SIDE), -book.bits)
    grid = book.index(x[:36]).reshape(SIDE, SIDE)
    bits = []
    for last in range(len(book.bits)):
        grid[-1, -1] = last
        bits.append(context.bits(grid))
    before = -np.log2(np.exp2(-np.array(bits) + min(bits)).sum()) + min(bits)
    one_less = kind.fit(book.index(x).reshape(-1, SIDE, SIDE), -book.bits).bits(grid[:-1])
    assert 0 < one_less < before + 1e-3 < min(bits) + 1e-3
