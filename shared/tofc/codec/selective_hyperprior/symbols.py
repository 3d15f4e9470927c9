"""The integers of one view: what the range coder writes and reads."""

from __future__ import annotations

from dataclasses import dataclass

from tofc.codec.integer_net import Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectiveHyperpriorSymbols:
    """The numbers sent of n features; and of each component its residual and its table."""

    quality: int  # one for the whole view
    q: Ints  # [n, 1 + Z + M]: a feature's expert, its ẑ, then its components in whole steps
    residual: Ints  # [n, M], −R..R
    table: Ints  # [n, M], 0..T−1

    @property
    def experts(self) -> Ints:
        """The expert of each feature [n], 0..E−1."""
        return self.q[:, 0]
