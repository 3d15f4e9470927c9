"""The seam between the codec and its entropy models: components of a view ⇄ integers ⇄ payload.

    y [n, M] ─ quantise ─ Symbols (q, and how each number is coded) ─ encode ─ range coder
    ŷ [n, M] ─ values ─── q ───────────────────────────────────────── decode ──┘

There are three entropy models, each in a folder of its own: `context`, `index` and `selective_hyperprior`. A codec's
file names one of them. Merging, positions, packets and limits are the same for all.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tofc.codec.integer_net import Floats, Ints
from tofc.codec.range_coder import RangeDecoder, RangeEncoder


class Symbols(Protocol):
    """The integers of n features of one view, at one quality. Every field is an integer or an array of them."""

    @property
    def quality(self) -> int: ...

    @property
    def q(self) -> Ints:
        """The numbers that are sent [n, ·], a row for each feature."""


S = TypeVar("S", bound=Symbols)


class EntropyModel(Protocol[S]):
    """An entropy model with its weights. Safe to share between threads."""

    @property
    def max_feature_bits(self) -> int:
        """An upper bound of the bits that one feature can cost."""

    def quantise(self, y: Floats, grid: int, cells: Ints, quality: int) -> S:
        """Choose the integers of components [n, M], in the units of `CodecWeights.unit`, of features at `cells` [n].

        Only for the encoder, which may compute in floats: every choice decodes.
        """

    def bits(self, symbols: S) -> Floats:
        """Return the ideal bits of each feature [n]."""

    def encode(self, symbols: S, encoder: RangeEncoder) -> None:
        """Encode the integers of a view, after those of the views before it."""

    def decode(self, decoder: RangeDecoder, grid: int, cells: Ints, quality: int) -> S:
        """Decode the integers of a view's features at `cells` [n].

        Promises the same integers on every machine. Raises `ValueError` for bytes that no encoder writes.
        """

    def values(self, q: NDArray[np.integer], quality: int) -> NDArray[np.float32]:
        """Return the components ŷ [n, M] that the integers [n, ·] stand for."""
