"""The golden packets, with which other decoders are tested, detect every wrong number that a decoder may have.

Damaged in turn are every row and every number of each tensor of an entropy model's network, and every table. Left out
are numbers that no packet can depend on: weights of neighbours of stage 1, and of components that are coded later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.codec.test_bitstream import CODECS, CONTEXT_CODECS, GOLDEN, INDEX_CODECS, entropy_model_of, golden
from tofc.codec import Codec, CodecWeights
from tofc.codec.context.config import ContextConfig
from tofc.codec.context.weights import ContextWeights
from tofc.codec.index.weights import IndexWeights
from tofc.codec.tables import TOTAL
from tofc.errors import PacketError

Ints = NDArray[np.int64]
Damage = Callable[[Ints], Ints]
# by entropy model
WEIGHTS = {
    "context": ["embed_w", "around_w", "own_w", "mid_w", "out_w"],
    "selective-hyperprior": ["h_s_w1", "h_s_w2"],
    "index": ["codebook", "embed_w", "around_w", "before_w", "own_w", "mid_w", "out_w"],
}
BIASES = {
    "context": ["embed_b", "own_b", "mid_b", "out_b"],
    "selective-hyperprior": ["h_s_b1", "h_s_b2"],
    "index": ["embed_b", "first_b", "mid_b", "out_b", "code_b", "place.4", "place.6"],
}
TABLE_NAMES = {"context": ["y_tables"], "selective-hyperprior": ["expert_tables", "z_tables", "y_tables"], "index": []}


def parts(*names: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Return (golden codec, tensor) for the tensors of each codec's entropy model."""
    return [(name, part) for name in CODECS for one in names for part in one[entropy_model_of(name)]]


LOST: dict[str, Damage] = {"lost": np.zeros_like, "negated": np.negative}
SLIGHT: dict[str, Damage] = {"one more": lambda row: row + 1}  # in the last bit


def shifted(table: Ints) -> Ints:
    """Give each symbol the count of the one before it."""
    return np.concatenate([[0], np.cumsum(np.roll(np.diff(table), 1))])


def nudged(table: Ints) -> Ints:
    """Move one count from the likeliest symbol to its neighbour."""
    counts = np.diff(table)
    top = int(counts.argmax())
    counts[top] -= 1
    counts[top + 1 if top + 1 < len(counts) else top - 1] += 1
    return np.concatenate([[0], np.cumsum(counts)])


TABLES: dict[str, Damage] = {"mirrored": lambda row: TOTAL - row[::-1], "shifted": shifted, "nudged": nudged}


def used(weights: CodecWeights, part: str) -> NDArray[np.bool_]:
    """Return which numbers of a tensor a packet can depend on."""
    found = np.ones(weights.arrays()[part].shape, bool)
    if not isinstance(c := weights.config, ContextConfig):
        return found
    if part == "around_w":  # of a feature of stage 1, whose neighbours are the cells of stage 0
        side = 2 * c.reach + 1
        row, column = np.divmod(np.delete(np.arange(side**2), side**2 // 2), side)
        found[:] = np.repeat((row + column) % 2 == 1, c.channels + 1)
    if part == "own_w":
        for index, (first, _) in enumerate(c.spans):
            found[index, :, first:] = False
    return found


def damaged(weights: CodecWeights, part: str, damage: Damage, *, single: bool) -> Iterator[tuple[Any, CodecWeights]]:
    """Yield the codec with one row, or one number, damaged at a time."""
    arrays = weights.arrays()
    right, live = arrays[part], used(weights, part)
    for place in np.ndindex(right.shape if single else right.shape[:-1]):
        wrong = right.astype(np.int64)
        wrong[place] = np.where(live[place], damage(wrong[place]), wrong[place])
        if (wrong != right).any():
            yield place, type(weights).of(weights.config, arrays | {part: wrong.astype(right.dtype)})


def unnoticed(name: str, part: str, damages: dict[str, Damage], *, single: bool) -> tuple[int, list[str]]:
    """Return how many damaged codecs were tried, and which of them decoded every golden packet correctly."""
    # first the longest packets of the grid that a tensor is for, as `place.6` is: they detect most
    entries = sorted(golden(name), key=lambda one: (not part.endswith(f".{one['grid']}"), -len(one["packet"])))
    weights, tried, missed = Codec.load(GOLDEN / name).weights, 0, []
    for kind, damage in damages.items():
        for place, wrong in damaged(weights, part, damage, single=single):
            tried += 1
            codec = Codec(wrong)
            if all(reads(codec, entry) for entry in entries):
                missed.append(f"{part}[{', '.join(map(str, place))}] {kind}")
    return tried, missed


def reads(codec: Codec, entry: dict[str, Any]) -> bool:
    try:
        found = codec.parse(bytes.fromhex(entry["packet"]))
    except PacketError:
        return False
    told = (found.grid, found.positions.tolist(), found.quality, found.q.tolist())
    return told == (entry["grid"], entry["cells"], entry["quality"], entry["q"])


@pytest.mark.parametrize(("name", "part"), parts(WEIGHTS, BIASES))
def test_a_damaged_row_is_noticed(name: str, part: str) -> None:
    tried, missed = unnoticed(
        name, part, LOST | (SLIGHT if part in WEIGHTS[entropy_model_of(name)] else {}), single=False
    )
    assert not missed
    assert tried or (name, part) == ("one-quality", "own_w"), "with one slice, `own_w` is all zeros"


@pytest.mark.parametrize(("name", "part"), parts(WEIGHTS, BIASES))
def test_a_damaged_number_is_noticed(name: str, part: str) -> None:
    _, missed = unnoticed(name, part, LOST, single=True)
    assert not missed


@pytest.mark.parametrize(("name", "part"), parts(TABLE_NAMES))
def test_a_damaged_table_is_noticed(name: str, part: str) -> None:
    tried, missed = unnoticed(name, part, TABLES, single=False)
    rows = getattr(Codec.load(GOLDEN / name).weights, part)[..., 0].size
    assert not missed and tried == len(TABLES) * rows


@pytest.mark.parametrize("name", INDEX_CODECS)
def test_a_damaged_weight_of_a_logit_is_noticed(name: str) -> None:
    """Each gets the weight of the one below it in turn, the last half of its own: an invalid table would be refused."""
    weights, entries = Codec.load(GOLDEN / name).weights, golden(name)
    assert isinstance(weights, IndexWeights)
    missed, table = [], weights.exp2.tolist()
    for at, wrong in enumerate([*table[1:], table[-1] // 2]):
        assert wrong < table[at]
        damaged_table = np.array([*table[:at], wrong, *table[at + 1 :]], np.uint32)
        codec = Codec(replace(weights, exp2=damaged_table))
        if all(reads(codec, entry) for entry in entries):
            missed.append(at)
    assert not missed


@pytest.mark.parametrize("name", CONTEXT_CODECS)
def test_numbers_that_count_as_unused_are_unused(name: str) -> None:
    """Only those of neighbours: a codec with weights other than 0 for components that are coded later is refused."""
    weights = ContextWeights.load(GOLDEN / name)
    wrong = np.where(used(weights, "around_w"), weights.around_w, 12345).astype(np.int16)
    codec = Codec(replace(weights, around_w=wrong))
    assert (wrong == 12345).any() and all(reads(codec, entry) for entry in golden(name))
