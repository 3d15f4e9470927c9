"""The indices of one view, and the counts by which each of them is coded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tofc.codec.integer_net import Floats, Ints
from tofc.codec.range_coder import COUNT_BITS


@dataclass(frozen=True, kw_only=True, eq=False)
class IndexSymbols:
    """The indices of n features; and of each index, in coding order, its counts out of 2²⁴."""

    quality: int  # one for the whole view
    q: Ints  # [n, S]
    feature: Ints  # [n · S], the row of q that each index belongs to
    first: Ints  # [n · S], the counts of all symbols before it
    count: Ints  # [n · S]

    @property
    def indices(self) -> Ints:
        """The indices of each feature [n, S], 0..K−1."""
        return self.q

    @property
    def stage_bits(self) -> Floats:
        """The ideal bits of each index [n, S]. A feature's stages are coded in their order."""
        bits: Floats = COUNT_BITS - np.log2(self.count[np.argsort(self.feature, kind="stable")])
        return bits.reshape(self.q.shape)
