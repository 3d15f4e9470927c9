"""Vector quantisation as a rival: what its indices cost, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tofc_lab.nano.answerer import Reduce
from tofc_lab.nano.costs import IdealCost
from tofc_lab.nano.features import CachedPicture
from tofc_lab.rate_distortion.codebooks import Codebooks, Design
from tofc_lab.rate_distortion.index_contexts import Context, CountContext, NetContext
from tofc_lab.rate_distortion.index_methods import IndexMethods
from tofc_lab.rate_distortion.training_views import Training

PROJECTOR = np.random.default_rng(1).normal(size=(5, 8))
CONTEXTS = pytest.mark.parametrize("kind", [CountContext, NetContext])
ONE, TWO, GROUPS = (
    Design(sizes=(64,), weight=0.003),
    Design(sizes=(16, 16), weight=0.003),
    Design(sizes=(16, 16), product=True, weight=0.003),
)


def pictures(count: int) -> list[CachedPicture]:
    """Return pictures of one whole view or of two crops and one: rows of background or of one of five things."""
    rng = np.random.default_rng(0)
    things = rng.normal(size=(6, 8)) * 4
    found = []
    for at in range(count):
        sides = (4, 4, 6) if at % 4 == 3 else (6,)
        rows = [np.where(rng.random(side) < 0.7, 0, rng.integers(1, 6, side)).repeat(side) for side in sides]
        cells = np.concatenate(rows)
        noisy = (things[cells] + rng.normal(size=(len(cells), 8)) * 0.1).astype(np.float16)
        found.append(CachedPicture(features=noisy, sides=sides, rows=1, columns=len(sides) - 1))
    return found


@pytest.fixture(scope="module")
def training() -> Training:
    return Training.of(pictures(200), PROJECTOR)


def unseen() -> list[NDArray[np.float32]]:
    return [view for one in pictures(260)[200:] for view in one.views()]


def context_of(kind: type[CountContext | NetContext], books: Codebooks) -> Context:
    return kind.fit(books.grids(), [-stage.bits for stage in books.stages])


def test_views_of_all_sides_are_fitted_in_a_fixed_order(training: Training) -> None:
    assert training.views.counts == {4: 100, 6: 200}
    first = next(view for one in pictures(200) for view in one.views() if len(view) == 16)
    assert np.allclose(training.points[:16].numpy(), training.space.points(first).numpy(), atol=1e-5)
    assert [grid.shape for grid in Codebooks.fit(training, TWO).grids()] == [(100, 4, 4, 2), (200, 6, 6, 2)]


def bits(reduce: Reduce, views: Sequence[NDArray[np.float32]]) -> float:
    costs = [reduce(view)[2] for view in views]
    return sum(cost.bits for cost in costs if isinstance(cost, IdealCost))


def test_every_feature_becomes_that_of_a_near_codeword(training: Training) -> None:
    view = unseen()[0]
    found, cells, cost = Codebooks.fit(training, Design(sizes=(64,))).reduce(36)(view)
    assert (cells == np.arange(36)).all()
    assert cost == IdealCost(36 * 6)  # log2 of 64 codewords
    assert np.abs(found - view).mean() < 0.2


@pytest.mark.parametrize("product", [False, True])
def test_further_stages_come_closer(training: Training, product: bool) -> None:
    def error(*sizes: int) -> float:
        books = Codebooks.fit(training, Design(sizes=sizes, product=product))
        return float(np.mean([np.square((books.reduce(36)(view)[0] - view) @ PROJECTOR.T).mean() for view in unseen()]))

    assert error(4, 4) < 0.7 * error(4)


@pytest.mark.parametrize("n", [36, 12])
@pytest.mark.parametrize("design", [ONE, TWO, GROUPS])
def test_an_entropy_constrained_codebook_needs_fewer_bytes(training: Training, design: Design, n: int) -> None:
    fixed = Design(sizes=design.sizes, product=design.product)
    plain, constrained = (Codebooks.fit(training, one).reduce(n) for one in (fixed, design))
    assert bits(constrained, unseen()) < 0.7 * bits(plain, unseen())


@CONTEXTS
def test_neighbours_tell_what_an_index_is(training: Training, kind: type[CountContext | NetContext]) -> None:
    books = Codebooks.fit(training, ONE)
    context = context_of(kind, books)
    for cells in (16, 36):
        views = [view for view in unseen() if len(view) == cells]
        alone, beside = (bits(books.reduce(36, one), views) for one in (None, context))
        assert beside < 0.65 * alone


@pytest.mark.parametrize("design", [TWO, GROUPS])
def test_a_stage_tells_what_the_next_one_is(training: Training, design: Design) -> None:
    books = Codebooks.fit(training, design)
    context = context_of(CountContext, books)
    alone, beside = (bits(books.reduce(36, one), unseen()) for one in (None, context))
    assert beside < 0.65 * alone


def test_counts_give_all_views_together_a_probability_of_one() -> None:
    """So a decoder could follow: each index has probabilities given those before it alone."""
    rng = np.random.default_rng(0)
    grids = [np.sort(rng.integers(0, 3, (20, side, side, 2)), axis=2) for side in (2, 3)]
    shares = [np.log2(np.array(share, np.float32)) for share in ((0.2, 0.3, 0.5), (0.1, 0.1, 0.8))]
    context = CountContext.fit(grids, shares)
    every = np.stack(np.unravel_index(np.arange(3**8), (3,) * 8), axis=-1).reshape(-1, 2, 2, 2)
    bits = np.array([context.bits(one) for one in every])
    assert bits.std() > 1
    assert np.exp2(-bits).sum() == pytest.approx(1, abs=1e-4)


def test_the_net_gives_all_views_together_a_probability_of_one() -> None:
    rng = np.random.default_rng(0)
    share = np.log2(np.array([0.3, 0.7], np.float32))
    net = NetContext.fit([np.sort(rng.integers(0, 2, (60, side, side, 1)), axis=2) for side in (4, 6)], [share])
    every = torch.from_numpy(np.arange(2**16)[:, None] >> np.arange(16) & 1).reshape(-1, 4, 4)
    with torch.no_grad():
        taken = net(every).log_softmax(-1).gather(-1, every[..., None]).double().sum((1, 2, 3))
    assert taken.std() > 1
    assert taken.exp().sum().item() == pytest.approx(1, abs=1e-4)
    assert net.bits(every[5].numpy()[..., None]) == pytest.approx(-taken[5].item() / np.log(2), rel=1e-4)


def test_what_is_fitted_is_kept(tmp_path: Path, training: Training) -> None:
    asked = []

    def load() -> Training:
        asked.append(1)
        return training

    for _ in range(2):
        methods = IndexMethods(load, tmp_path, b"one", lambda _: None)
        small = [one for one in methods.settings()["VQ, indices of fixed length"] if one.name.startswith("64 ")]
        sent = [setting.make(setting.features)(unseen()[0]) for setting in small]
        assert len(asked) == 1
    again = IndexMethods(load, tmp_path, b"another", lambda _: None).settings()["VQ, indices of fixed length"][0]
    assert again.make(36)(unseen()[0])[2] == sent[0][2]
    assert len(asked) == 2  # other training pictures: fitted anew


def test_every_setting_has_a_name_of_its_own(tmp_path: Path) -> None:
    def never() -> Training:
        raise AssertionError("nothing is fitted before it is measured")

    for settings in IndexMethods(never, tmp_path, b"").settings().values():
        assert len({one.name for one in settings}) == len(settings)
