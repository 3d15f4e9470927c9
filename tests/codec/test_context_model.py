"""What the context model's predictions depend on, and that its floats are the documented integers."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from tests.codec.second_decoder import PlainDecoder
from tofc.codec import Codec, CodedView
from tofc.codec.context.config import ContextConfig
from tofc.codec.context.context_model import ContextModel, stages
from tofc.codec.context.weights import STAGES, ContextWeights
from tofc.codec.fake import fake_features, fake_weights
from tofc.codec.integer_net import ACTIVATION_BITS, ACTIVATION_MAX
from tofc.codec.neighbourhood import neighbour_indices
from tofc.codec.packet import read
from tofc.codec.range_coder import RangeDecoder
from tofc.codec.tables import table_from_probabilities
from tofc.errors import CodecError


def draw_cells(rng: np.random.Generator, grid: int, n: int | None = None) -> np.ndarray:
    n = int(rng.integers(1, grid * grid + 1)) if n is None else n
    return np.sort(rng.permutation(grid * grid)[:n])


@pytest.mark.parametrize("reach", [1, 2, 3])
@pytest.mark.parametrize("grid", [1, 2, 3, 6])
def test_stages_and_neighbours_are_those_of_a_loop(grid: int, reach: int) -> None:
    rng = np.random.default_rng(grid)
    for _ in range(6):
        cells = draw_cells(rng, grid)
        places = [divmod(cell, grid) for cell in cells.tolist()]
        wanted = []
        for row, column in places:
            offsets = [(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1) if y or x]
            near = [(row + y, column + x) for y, x in offsets]
            wanted.append([places.index(place) if place in places else len(places) for place in near])
        assert neighbour_indices(grid, cells, reach).tolist() == wanted
        assert stages(grid, cells).tolist() == [(row + column) % 2 for row, column in places]


def predictions(context: ContextModel, grid: int, cells: np.ndarray, q: np.ndarray, quality: int = 0) -> np.ndarray:
    """Return mean and table of every number [n, M, 2] if the numbers are coded as q [n, M]."""
    found = np.full((*q.shape, 2), -99)
    written = np.full(q.shape, 1e9)  # numbers that are not coded yet must not be read
    for step in context.coding_steps(grid, cells, quality, written):
        part = (step.rows, slice(step.first, step.last))
        assert (found[part] == -99).all() and (written[part] == 1e9).all(), "a number is coded twice"
        found[part] = np.stack([step.mean, step.table], axis=-1)
        written[part] = q[part]
    assert (found != -99).all()
    return found


def strong_weights(**sizes: Any) -> ContextWeights:
    """Make a codec whose predictions change with small changes of the numbers coded before."""
    weights = fake_weights(**sizes)
    return replace(weights, out_w=(weights.out_w.astype(int) * 8).clip(-32768, 32767).astype(np.int16))


@pytest.mark.parametrize("n", [64, 40])
def test_predictions_depend_on_earlier_slices_and_on_neighbours_of_stage_0(n: int) -> None:
    weights = strong_weights(M=8, D=16, seed=2)
    context, spans, reach = ContextModel(weights), weights.config.spans, weights.config.reach
    rng = np.random.default_rng(n)
    grid, cells = 8, draw_cells(rng, 8, n)
    row, column = np.divmod(cells, grid)
    stage = (row + column) % 2
    q = rng.integers(-4, 5, (n, 8))
    before = predictions(context, grid, cells, q)
    moved_own = moved_near = 0
    for feature in range(n):
        for first, last in spans:
            changed = q.copy()
            changed[feature, first:last] += rng.choice([-3, 3], last - first)
            moved = (predictions(context, grid, cells, changed) != before).any(axis=-1)  # [n, M]
            own, others = moved[feature], np.delete(moved, feature, axis=0)
            assert not own[:last].any(), "a slice depends on itself or on a later one"
            moved_own += own.any()
            near = np.maximum(abs(row - row[feature]), abs(column - column[feature])) <= reach
            allowed = np.delete(near & (stage == 1) & (stage[feature] == 0), feature)
            assert not others[~allowed].any(), "a prediction depends on a cell that it must not depend on"
            moved_near += others.any(axis=1).sum()
    assert moved_own > n and moved_near > n, "nothing depends on anything"


def test_predictions_depend_on_every_earlier_slice_and_every_neighbour() -> None:
    weights = strong_weights(M=8, D=16, seed=2)
    context, spans = ContextModel(weights), weights.config.spans
    rng = np.random.default_rng(0)
    cells, by_slice, by_neighbour = np.arange(25), np.zeros((len(spans), len(spans)), bool), np.zeros(24, int)
    for _ in range(40):
        q = rng.integers(-4, 5, (25, 8))
        before = predictions(context, 5, cells, q)
        for index, (first, last) in enumerate(spans):
            changed = q.copy()
            changed[11, first:last] += 3  # of stage 1
            moved = (predictions(context, 5, cells, changed) != before).any(axis=(0, 2))
            by_slice[index] |= [moved[a:b].any() for a, b in spans]
        for cell in range(0, 25, 2):  # of stage 0
            changed = q.copy()
            changed[cell] += 3
            moved = (predictions(context, 5, cells, changed) != before).any(axis=(1, 2))
            for place, index in enumerate(neighbour_indices(5, cells, 2)[11]):
                by_neighbour[place] += index == cell and moved[11]
    assert (by_slice == np.triu(np.ones_like(by_slice), 1)).all()
    near = neighbour_indices(5, cells, 2)[11]  # the cell at row 2, column 1, with neighbours beyond the edge
    assert ((by_neighbour > 0) == ((near < 25) & (near % 2 == 0))).all()


def test_stages_and_qualities_have_predictions_of_their_own() -> None:
    weights = strong_weights(M=8, D=16, seed=2, Q=2)
    context, nothing = ContextModel(weights), np.zeros((1, 8), int)
    alone = [predictions(context, 4, np.array([cell]), nothing, k) for cell, k in ((0, 0), (2, 0), (1, 0), (0, 1))]
    assert (alone[0] == alone[1]).all(), "besides its stage, the place of a cell does not matter"
    assert (alone[0] != alone[2]).any() and (alone[0] != alone[3]).any()


def test_a_neighbour_of_zeros_differs_from_a_missing_one() -> None:
    weights = strong_weights(M=8, D=16, seed=2)
    context = ContextModel(weights)
    with_one, alone = predictions(context, 4, np.array([0, 1]), np.zeros((2, 8), int)), np.zeros((1, 8), int)
    assert (with_one[1] != predictions(context, 4, np.array([1]), alone)[0]).any()


def test_the_encoder_and_the_decoder_take_the_same_coding_steps() -> None:
    codec = Codec(fake_weights(Q=2, seed=3))
    for seed, (grid, n) in enumerate([(6, 36), (6, 11), (4, 1), (1, 1), (13, 60), (2, 2)]):
        features, quality = fake_features(codec.weights, grid * grid, seed), seed % 2
        merged = codec.merge(features, n)
        wrote = codec.symbols(merged.centroids, grid, merged.centres, quality)
        limit = codec.entropy_model.max_feature_bits
        packet = codec.encode(features, n, quality)
        (layout,), payload = read(packet, max_side=16, max_feature_bits=limit, qualities=2)
        found = codec.entropy_model.decode(RangeDecoder(payload), grid, merged.centres, quality)
        assert packet == codec.write([CodedView(layout=layout, symbols=wrote)])
        assert (layout.cells, layout.quality) == (tuple(merged.centres.tolist()), quality)
        for name in ("q", "feature", "residual", "table"):
            one, two = getattr(wrote, name), getattr(found, name)
            assert one.dtype == two.dtype == np.int64 and one.shape == two.shape and (one == two).all()
        # In coding order: the features of stage 0 first, each number once.
        order = stages(grid, merged.centres)[wrote.feature]
        assert (np.diff(order) >= 0).all() and (np.bincount(wrote.feature) == codec.config.components).all()


def at_the_bounds(seed: int, share: float) -> ContextWeights:
    """Make a codec with the largest possible residuals and with random integers, a `share` of them the extreme ones."""
    rng = np.random.default_rng(seed)
    config = ContextConfig(
        feature_dim=10, components=9, slices=(1, 4, 9), channels=3, context_hidden=7, reach=1 + seed % 2, qualities=2,
        hidden=4, residual_range=4095, tables=512, fraction=8, rates=((None, 0),),
    )  # fmt: skip
    draft = fake_weights(D=10, M=9, Q=2, slices=3, hidden=7)
    near = (2 * config.reach + 1) ** 2 - 1
    shapes = {
        name: getattr(draft, name).shape
        for name in ("embed_w", "embed_b", "own_w", "own_b", "mid_w", "mid_b", "out_w", "out_b")
    } | {"around_w": (7, near * 4)}
    found = {}
    for name, shape in shapes.items():
        bounds = np.iinfo(np.int16 if name.endswith("_w") else np.int32)
        size = 2.0 ** rng.uniform(4, 15 if name.endswith("_w") else 31, shape)  # of every magnitude
        anything = (rng.choice([-1, 1], shape) * size).astype(bounds.dtype)
        ends = rng.choice([bounds.min, bounds.max], shape).astype(bounds.dtype)
        found[name] = np.where(rng.random(shape) < share, ends, anything)
    for index, (first, _) in enumerate(config.spans):
        found["own_w"][index, :, first:] = 0
    flat = np.tile(table_from_probabilities(np.ones(2 * 4095 + 1)), (512, 1))
    return replace(draft, config=config, y_tables=flat, grid_embedding={}, **found)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_floats_compute_the_documented_integers(seed: int, share: float) -> None:
    weights = at_the_bounds(seed, share)
    c = weights.config
    plain = PlainDecoder(json.loads(c.text()), weights.arrays())
    rng = np.random.default_rng(seed)
    grid, cells = 4, draw_cells(rng, 4, 12)
    q = rng.choice([-2 * c.residual_range, -3, -1, 0, 1, 2, 2 * c.residual_range], (12, 9))
    found = predictions(ContextModel(weights), grid, cells, q, seed % 2)
    wanted = np.zeros_like(found)

    def component(cell: int, i: int, mean: int, table: int) -> int:
        at = cells.tolist().index(cell)
        wanted[at, i] = mean, table
        return int(q[at, i])

    plain.walk(grid, cells.tolist(), seed % 2, component)
    assert (found == wanted).all()
    assert share or len(np.unique(wanted[..., 1])) > 30, "so many sums are clipped that this tests little"


def test_no_sum_of_any_codec_exceeds_what_a_double_holds_exactly() -> None:
    largest = {
        "components": 4096, "channels": 256, "context_hidden": 4096, "reach": 4, "residual_range": 4095, "fraction": 8,
    }  # fmt: skip
    most = asdict(
        ContextConfig(feature_dim=1, hidden=1, tables=4096, **(largest | {"slices": (2048, 4096)}))  # type: ignore[arg-type]
    )
    for name, value in largest.items():
        with pytest.raises(CodecError, match=name):
            ContextConfig(**most | {name: value + 1})
    weight, bias = 1 << 15, 1 << 31  # magnitudes of int16 and int32
    symbol = 2 * largest["residual_range"] << ACTIVATION_BITS  # a mean and a residual
    near = (2 * largest["reach"] + 1) ** 2 - 1
    own = largest["components"] * weight * symbol
    sums = {
        "embed": own + bias,
        "first": own + near * (largest["channels"] + 1) * weight * ACTIVATION_MAX + bias,
        "middle and last": largest["context_hidden"] * weight * ACTIVATION_MAX + bias,
    }
    assert max(sums.values()) < 2**53 and ACTIVATION_MAX >= 1 << ACTIVATION_BITS and STAGES == 2
