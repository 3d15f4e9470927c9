"""The indices of one view, and the counts by which each of them is coded."""

from __future__ import annotations

from dataclasses import dataclass

from tofc.codec.integer_net import Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class IndexSymbols:
    """The indices of n features; and of each index, in coding order, its counts out of 2²⁴."""

    quality: int  # one for the whole view
    q: Ints  # [n, S]
    feature: Ints  # [n · S], the row of q that each index belongs to
    first: Ints  # [n · S], the counts of all symbols before it
    count: Ints  # [n · S]
