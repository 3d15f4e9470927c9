"""Features of one view ⇄ a packet: the codec's façade.

    F [N, D] ─ analysis ─ Y [N, M] ─ merge ─ y [n, M] ─ quantise ─ q [n, M] ─ context ─ symbols ─ coder ─ packet
    x̂ [n, D] ─ synthesis ─────────────────── dequantise ────────── q [n, M] ─ context ─ symbols ─ coder ─┘

Promises that a packet decodes to the same q, bit for bit, on every machine, that no other bytes decode
to it, and that bad bytes raise ``PacketError`` and nothing else. The encoder's own arithmetic is
floating: two machines may write two different packets for one picture, and both are right. Leaves to
the caller which view a packet belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, log2
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.codec import packet
from shared.codec.context import Context
from shared.codec.dequantiser import Dequantiser
from shared.codec.merge import Merged, merge
from shared.codec.packet import Layout, PacketError
from shared.codec.payload import PayloadCoder
from shared.codec.symbols import Chooser, Symbols
from shared.codec.weights import CodecWeights


@dataclass(frozen=True, kw_only=True, eq=False)
class Parsed:
    """What a packet says, in integers."""

    q: NDArray[np.int64]  # [n, M], whole steps
    positions: NDArray[np.int64]  # [n], ascending raster index in the grid: the cell of each feature
    grid: int  # side
    quality: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded(Parsed):
    """What a packet says, and what the encoder saw, about."""

    features: NDArray[np.float32]  # [n, D]


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Where a packet's bits go. All bits are ideal (−log₂ p of the tables); only ``packet`` is real."""

    merged: Merged
    packet: bytes
    feature_bits: NDArray[np.float64]  # [n]
    place_bits: float  # the quality, and n and the set of positions when merged
    header_bits: int  # header and checksum

    @property
    def ideal_bytes(self) -> float:
        return (self.header_bits + self.place_bits + float(self.feature_bits.sum())) / 8


class Codec:
    """Encodes and decodes views with one set of weights. Safe to share between threads.

    >>> from shared.codec.fake import fake_features, fake_weights
    >>> codec = Codec(fake_weights(seed=1))
    >>> decoded = codec.decode(codec.encode(fake_features(codec.weights, 36, seed=2), n=12))
    >>> decoded.features.shape == (12, codec.weights.config.feature_dim), decoded.grid
    (True, 6)
    """

    def __init__(self, weights: CodecWeights) -> None:
        self.config = weights.config
        self.weights = weights
        context = Context(weights)
        self._chooser = Chooser(weights, context)
        self._mean = weights.mean.astype(np.float64)
        self._analysis = (weights.analysis.astype(np.float64) / weights.step[-1][:, None]).T  # [D, M]
        self._ratio = weights.step[-1].astype(np.float64) / weights.step  # [Q, M]
        self.dequantise = Dequantiser.of(weights)  # quantised components [n, M], quality → features [n, D]
        self.payload = PayloadCoder(weights, context)  # symbols alone, for tools that look inside a packet

    @classmethod
    def load(cls, directory: Path) -> Codec:
        """From a directory with codec.json and codec.safetensors. Raises ``CodecError``."""
        return cls(CodecWeights.load(directory))

    def encode(self, features: NDArray[np.float32], n: int | None = None, quality: int | None = None) -> bytes:
        """Features of a square grid [N, D] → one packet of n features at a quality, 0 the coarsest.

        None takes those of the codec's default preset (n at most N); n = N does not merge. Raises ``ValueError``
        for a wrong shape, NaN, n outside 1..N, or a quality that the codec has not.
        """
        merged = self.merge(features, n)
        return self._write(merged, self._symbols(merged, quality))

    def decode(self, data: bytes) -> Decoded:
        """A packet → features and where they belong. Raises ``PacketError`` for anything that is no packet."""
        parsed = self.parse(data)
        return Decoded(**vars(parsed), features=self.dequantise(parsed.q, parsed.quality))

    def parse(self, data: bytes) -> Parsed:
        """As ``decode``, without the features: all that needs to be exact. Raises ``PacketError``."""
        limit = self.payload.max_feature_bits
        layout, payload = packet.read(
            data, max_side=self.config.max_grid, max_feature_bits=limit, qualities=self.config.qualities
        )
        cells = np.array(layout.cells, np.int64)
        try:
            symbols, interval = self.payload.decode(payload, layout.grid, cells, layout.quality)
        except ValueError as error:
            raise PacketError("PAYLOAD_INVALID", f"{error}: the packet is damaged, send it again") from error
        # Many byte strings lead to the same symbols; only the one that an encoder writes is taken.
        if packet.write(layout, interval, qualities=self.config.qualities) != data:
            raise PacketError("NOT_CANONICAL", "these bytes are not what an encoder writes: the packet is damaged")
        return Parsed(q=symbols.q, positions=cells, grid=layout.grid, quality=layout.quality)

    def explain(self, features: NDArray[np.float32], n: int | None = None, quality: int | None = None) -> Explanation:
        """Encodes as ``encode`` does and says where the bits went."""
        merged = self.merge(features, n)
        symbols = self._symbols(merged, quality)
        layout = _layout(merged, symbols.quality)
        return Explanation(
            merged=merged,
            packet=self._write(merged, symbols),
            feature_bits=self._chooser.bits(symbols),
            place_bits=log2(layout.digits(self.config.qualities)[1]),
            header_bits=layout.header_bits,
        )

    def components(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Features [N, D] → components [N, M] in the finest steps."""
        # In float64, so that no library's way of adding decides which step is the nearest.
        y: NDArray[np.float64] = (features - self._mean) @ self._analysis
        return y

    def merge(self, features: NDArray[np.float32], n: int | None = None) -> Merged:
        """Features of a square grid [N, D] → components [n, M] in the finest steps, and the cells that they are of.

        Distances are those between components: what answers do not depend on does not tell features apart. Raises
        what ``encode`` raises.
        """
        c = self.config
        if features.ndim != 2 or features.shape[1] != c.feature_dim:
            raise ValueError(f"features must be [N, {c.feature_dim}] for this codec, not {features.shape}")
        total = len(features)
        if not 1 <= total <= c.max_grid**2 or isqrt(total) ** 2 != total:
            raise ValueError(f"{total} features; a square grid with sides of 1 to {c.max_grid} is needed")
        if n is None:
            n = min(c.rate[0] or total, total)
        with np.errstate(invalid="ignore"):  # merging says that such features are none
            return merge(self.components(features), n, c.neighbours)

    def symbols(
        self, components: NDArray[np.floating], grid: int, cells: NDArray[np.int64], quality: int | None = None
    ) -> Symbols:
        """Components [n, M] in the finest steps, of features at ``cells`` → symbols.

        What is too large for a table is clipped. Raises ``ValueError`` for a quality that the codec has not.
        """
        level = self.config.rate[1] if quality is None else quality
        if not 0 <= level < self.config.qualities:
            raise ValueError(f"quality {level}; this codec has 0 (the coarsest) to {self.config.qualities - 1}")
        y: NDArray[np.float64] = components * self._ratio[level]  # in this quality's steps
        return self._chooser.choose(y, grid, cells, level)

    def grid_embedding(self, grid: int, positions: NDArray[np.integer]) -> NDArray[np.float32]:
        """What the server adds to projected features at ``positions`` [n] → [n, H]; zeros where none was learned."""
        table = self.weights.grid_embedding.get(grid)
        if table is None:
            return np.zeros((len(positions), self.config.hidden), np.float32)
        rows: NDArray[np.float32] = table[positions].astype(np.float32)
        return rows

    def _symbols(self, merged: Merged, quality: int | None) -> Symbols:
        return self.symbols(merged.centroids, isqrt(len(merged.assignment)), merged.centres, quality)

    def _write(self, merged: Merged, symbols: Symbols) -> bytes:
        layout = _layout(merged, symbols.quality)
        return packet.write(layout, self.payload.encode(symbols), qualities=self.config.qualities)


def _layout(merged: Merged, quality: int) -> Layout:
    return Layout(grid=isqrt(len(merged.assignment)), cells=tuple(merged.centres.tolist()), quality=quality)
