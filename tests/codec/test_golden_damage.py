"""Some golden packet tells of every wrong number that a decoder may have: they are what other machines are tried with.

Of each tensor of the context model every row and every single number, of the tables every row. What no packet can
depend on is left out: weights of cells that a feature does not see, and of components that are not known yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.codec import Codec, CodecWeights, PacketError
from shared.codec.tables import TOTAL
from tests.codec.test_bitstream import CODECS, GOLDEN, golden

Ints = NDArray[np.int64]
Damage = Callable[[Ints], Ints]
WEIGHTS = ["embed_w", "around_w", "own_w", "mid_w", "out_w"]
BIASES = ["embed_b", "own_b", "mid_b", "out_b"]

LOST: dict[str, Damage] = {"lost": np.zeros_like, "negated": np.negative}
SLIGHT: dict[str, Damage] = {"one more": lambda row: row + 1}  # in the last bit


def shifted(table: Ints) -> Ints:
    """Each symbol has the count of the one before it."""
    return np.concatenate([[0], np.cumsum(np.roll(np.diff(table), 1))])


def nudged(table: Ints) -> Ints:
    """The likeliest symbol has one count less, its neighbour one more."""
    counts = np.diff(table)
    top = int(counts.argmax())
    counts[top] -= 1
    counts[top + 1 if top + 1 < len(counts) else top - 1] += 1
    return np.concatenate([[0], np.cumsum(counts)])


TABLES: dict[str, Damage] = {"mirrored": lambda row: TOTAL - row[::-1], "shifted": shifted, "nudged": nudged}


def used(weights: CodecWeights, part: str) -> NDArray[np.bool_]:
    """Which numbers of a tensor a packet can depend on."""
    c, shape = weights.config, getattr(weights, part).shape
    found = np.ones(shape, bool)
    if part == "around_w":  # of a feature of stage 1; cells of its own stage are none that it sees
        side = 2 * c.reach + 1
        row, column = np.divmod(np.delete(np.arange(side**2), side**2 // 2), side)
        found[:] = np.repeat((row + column) % 2 == 1, c.channels + 1)
    if part == "own_w":
        for index, (first, _) in enumerate(c.spans):
            found[index, :, first:] = False
    return found


def damaged(weights: CodecWeights, part: str, damage: Damage, *, single: bool) -> Iterator[tuple[Any, CodecWeights]]:
    """The codec with each row, or each number, damaged alone."""
    right, live = getattr(weights, part), used(weights, part)
    for place in np.ndindex(right.shape if single else right.shape[:-1]):
        wrong = right.astype(np.int64)
        wrong[place] = np.where(live[place], damage(wrong[place]), wrong[place])
        if (wrong != right).any():
            yield place, replace(weights, **{part: wrong.astype(right.dtype)})


def unnoticed(name: str, part: str, damages: dict[str, Damage], *, single: bool) -> tuple[int, list[str]]:
    """How many codecs with something wrong were tried, and which of them read every golden packet right."""
    entries = sorted(golden(name), key=lambda entry: -len(entry["packet"]))
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


@pytest.mark.parametrize("part", [*WEIGHTS, *BIASES])
@pytest.mark.parametrize("name", CODECS)
def test_a_damaged_row_is_noticed(name: str, part: str) -> None:
    tried, missed = unnoticed(name, part, LOST | (SLIGHT if part in WEIGHTS else {}), single=False)
    assert not missed
    assert tried or (name, part) == ("one-quality", "own_w"), "with one slice nothing is known of a feature itself"


@pytest.mark.parametrize("part", [*WEIGHTS, *BIASES])
@pytest.mark.parametrize("name", CODECS)
def test_a_damaged_number_is_noticed(name: str, part: str) -> None:
    _, missed = unnoticed(name, part, LOST, single=True)
    assert not missed


@pytest.mark.parametrize("name", CODECS)
def test_a_damaged_table_is_noticed(name: str) -> None:
    tried, missed = unnoticed(name, "y_tables", TABLES, single=False)
    assert not missed and tried == len(TABLES) * Codec.load(GOLDEN / name).config.tables


@pytest.mark.parametrize("name", CODECS)
def test_what_counts_as_unused_is(name: str) -> None:
    """Of what a feature sees around. (Weights of components that are not known yet must be 0, or it is no codec.)"""
    weights = Codec.load(GOLDEN / name).weights
    wrong = np.where(used(weights, "around_w"), weights.around_w, 12345).astype(np.int16)
    codec = Codec(replace(weights, around_w=wrong))
    assert (wrong == 12345).any() and all(reads(codec, entry) for entry in golden(name))
