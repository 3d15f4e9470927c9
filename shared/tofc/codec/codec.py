"""Features of one view, or several ⇄ a packet: the public face of the codec.

    F [N, D] ─ analysis ─ Y [N, M] ─ merge ─ y [n, M] ─ quantise ─ q [n, ·] ─ entropy model ─ coder ─ packet
    x̂ [n, D] ─ synthesis ──────── ŷ [n, M] ───── values ────────── q [n, ·] ─ entropy model ─ coder ─┘

Promises that a packet decodes to the same q, bit for bit, on every machine, that each q has only one packet, and that
invalid bytes raise `PacketError` and nothing else. The encoder computes in floats: two machines may write different
packets for the same picture, and both are valid. Leaves to the caller which view a packet belongs to, and to the
entropy model what the integers q are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt, log2
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tofc.codec import files, packet
from tofc.codec.dequantiser import Dequantiser
from tofc.codec.entropy_model import EntropyModel, Symbols
from tofc.codec.layout import PacketLayout
from tofc.codec.merge import Merged, merge
from tofc.codec.range_coder import RangeDecoder, RangeEncoder
from tofc.codec.weights import CodecWeights
from tofc.errors import PacketError, UsageError
from tofc.packet_limits import MOST_VIEWS, VIEWS_PER_PACKET


@dataclass(frozen=True, kw_only=True, eq=False)
class CodedView:
    """A view in integers: what packets are written from."""

    layout: PacketLayout
    symbols: Symbols


@dataclass(frozen=True, kw_only=True, eq=False)
class Parsed:
    """The content of a view's packet, in integers."""

    q: NDArray[np.int64]
    """The numbers that are sent [n, ·], a row for each feature: see the codec's entropy model."""
    positions: NDArray[np.int64]
    """The grid cell of each feature [n], as ascending raster indices."""
    grid: int
    """Side of the view's grid, in cells."""
    quality: int
    """Quality level; 0 is the coarsest."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded(Parsed):
    """The content of a view's packet, and the features it stands for."""

    features: NDArray[np.float32]
    """x̂ [n, D]: the encoder's merged features, up to the quantisation error."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """How a packet's bits are spent. Ideal bits are the information content, without rounding to whole bytes."""

    merged: Merged
    """The merged features, and which features each of them is made of."""
    coded: CodedView
    """The view in integers."""
    packet: bytes
    """The packet of this view alone."""
    feature_bits: NDArray[np.float64]
    """Ideal bits of each feature [n]: the sum of −log₂ p of its symbols, by the codec's tables."""
    position_bits: float
    """Ideal bits of the quality and, when merged, of n and the set of positions."""
    header_bits: int
    """Bits of header and checksum, exactly."""
    experts: NDArray[np.int64] | None = None
    """The expert that codes each feature [n], if the entropy model has experts."""
    indices: NDArray[np.int64] | None = None
    """The index of each feature in each codebook [n, S], if the entropy model codes indices."""
    stage_bits: NDArray[np.float64] | None = None
    """Ideal bits of each of these indices [n, S]: their sums are `feature_bits`."""

    @property
    def ideal_bytes(self) -> float:
        """Bytes of the whole packet if every part cost its ideal bits."""
        return (self.header_bits + self.position_bits + float(self.feature_bits.sum())) / 8


class Codec:
    """Encodes and decodes the features of views with one set of weights. Safe to share between threads.

    N, D, M, n and Q are the numbers of a view's grid cells, of numbers in a feature, of components, of features kept
    and of quality levels.

    >>> import numpy as np
    >>> from tofc.codec.fake import fake_features, fake_weights     # a codec without training
    >>> codec = Codec(fake_weights(seed=1))
    >>> features = fake_features(codec.weights, 36, seed=2)         # [N, D] float32, of a grid of 6 × 6 cells
    >>> packet = codec.encode(features, n=12)
    >>> decoded = codec.decode(packet)
    >>> assert decoded.features.shape == (12, codec.config.feature_dim) and decoded.grid == 6
    >>> assert np.array_equal(decoded.q, codec.parse(packet).q)
    """

    def __init__(self, weights: CodecWeights) -> None:
        """Prepare a codec. `load` reads the weights from a directory."""
        self.config = weights.config
        self.weights = weights
        self._mean = weights.mean.astype(np.float64)
        self._unit = weights.unit
        self._analysis = (  # [D, M]
            None if weights.analysis is None else (weights.analysis.astype(np.float64) / self._unit[:, None]).T
        )
        self._mean_y = self._mean if self._analysis is None else self._mean @ self._analysis  # [M]
        #: components ⇄ integers ⇄ payload
        self.entropy_model: EntropyModel[Any] = weights.entropy_model()
        synthesis = None if weights.synthesis is None else np.ascontiguousarray(weights.synthesis.T)
        #: (q [n, ·], quality) → features [n, D]
        self.dequantise = Dequantiser(self.entropy_model.values, synthesis, weights.mean)

    @classmethod
    def load(cls, directory: Path) -> Codec:
        """Read `codec.json` and `codec.safetensors` of a directory.

        Raises `CodecError` for files that contradict themselves or this version, and `FileNotFoundError`.
        """
        return cls(files.load_weights(directory))

    def encode(self, features: NDArray[np.float32], n: int | None = None, quality: int | None = None) -> bytes:
        """Encode the features of a square grid [N, D] as one packet of n features at a quality; 0 is the coarsest.

        None takes n (at most N) and quality of the codec's default preset; n = N does not merge. Raises `UsageError`
        for another shape, for NaN and infinity, for n outside 1..N and for a quality outside 0..Q − 1.
        """
        return self.write([self.code(features, n, quality)])

    def code(self, features: NDArray[np.float32], n: int | None = None, quality: int | None = None) -> CodedView:
        """Do what `encode` does, up to the packet: `write` makes it, of this view alone or of several."""
        merged = self.merge(features, n)
        symbols = self._symbols(merged, quality)
        return CodedView(layout=_layout(merged, symbols.quality), symbols=symbols)

    def write(self, views: Sequence[CodedView]) -> bytes:
        """Write one packet of 1 to `MOST_VIEWS` views of a picture, in their order.

        Views that leave together share header, checksum and rounding: of small views that is half of the bytes.
        Raises `UsageError` for another number of views.
        """
        if not 1 <= len(views) <= MOST_VIEWS:
            raise UsageError(f"a packet has 1 to {MOST_VIEWS} views, got {len(views)}; write several packets")
        encoder = RangeEncoder()
        for view in views:
            self.entropy_model.encode(view.symbols, encoder)
        layouts = [view.layout for view in views]
        return packet.write(layouts, encoder.interval(), qualities=self.config.qualities)

    def packets(self, views: Sequence[CodedView], together: int = VIEWS_PER_PACKET) -> list[bytes]:
        """Write the views of a picture, in their order, as packets of `together` views; the last may have fewer."""
        return [self.write(views[first : first + together]) for first in range(0, len(views), together)]

    def decode(self, data: bytes) -> Decoded:
        """Decode a packet of one view into features [n, D] and their positions in the grid.

        Raises `PacketError` for anything that `encode` does not return.
        """
        return self._decoded(self.parse(data))

    def decode_views(self, data: bytes) -> list[Decoded]:
        """Decode a packet of any number of views. Raises `PacketError` for anything that `write` does not return."""
        return [self._decoded(view) for view in self.parse_views(data)]

    def parse(self, data: bytes) -> Parsed:
        """Decode a packet of one view without computing features: the part that is exact on every machine.

        Raises `PacketError`.
        """
        return self.parse_views(data, most=1)[0]

    def parse_views(self, data: bytes, most: int = MOST_VIEWS) -> list[Parsed]:
        """Decode a packet of up to `most` views without computing features. Raises `PacketError`."""
        layouts, payload = packet.read(
            data,
            max_side=self.config.max_grid,
            max_feature_bits=self.entropy_model.max_feature_bits,
            qualities=self.config.qualities,
            max_views=most,
        )
        decoder, views = RangeDecoder(payload), []
        for layout in layouts:
            cells = np.array(layout.cells, np.int64)
            try:
                symbols = self.entropy_model.decode(decoder, layout.grid, cells, layout.quality)
            except ValueError as error:
                raise PacketError("PAYLOAD_INVALID", f"{error}: the packet is damaged, send it again") from error
            views.append(Parsed(q=symbols.q, positions=cells, grid=layout.grid, quality=layout.quality))
        # Many byte strings decode to the same symbols; only the canonical one, which an encoder writes, is accepted.
        if packet.write(layouts, decoder.interval(), qualities=self.config.qualities) != data:
            raise PacketError(
                "NOT_CANONICAL", "these bytes are not what an encoder writes: the packet is damaged, send it again"
            )
        return views

    def explain(self, features: NDArray[np.float32], n: int | None = None, quality: int | None = None) -> Explanation:
        """Encode as `encode` does, and account for every bit. Raises what `encode` raises."""
        return self.account(features, self.code(features, n, quality))

    def account(self, features: NDArray[np.float32], coded: CodedView) -> Explanation:
        """Account for every bit of a view that `code` has coded from these features; merges again, which is quick."""
        layout, symbols = coded.layout, coded.symbols
        merged = self.merge(features, layout.n)
        return Explanation(
            merged=merged,
            coded=coded,
            packet=self.write([coded]),
            feature_bits=self.entropy_model.bits(symbols),
            position_bits=log2(layout.digits(self.config.qualities)[1]),
            header_bits=layout.header_bits,
            experts=getattr(symbols, "experts", None),  # each entropy model has some of these, or none
            indices=getattr(symbols, "indices", None),
            stage_bits=getattr(symbols, "stage_bits", None),
        )

    def components(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Transform features [N, D] to components Y [N, M], in the units of `CodecWeights.unit`: the analysis."""
        # In float64: rounding errors of a library are then too small to change which integer is the nearest.
        if self._analysis is None:
            y: NDArray[np.float64] = (features - self._mean) / self._unit
        else:
            y = features.astype(np.float64) @ self._analysis
            y -= self._mean_y  # faster than subtracting from the many numbers of the features
        return y

    def merge(self, features: NDArray[np.float32], n: int | None = None) -> Merged:
        """Merge the features of a square grid [N, D] into components [n, M].

        Distances are computed between components: features that differ only in what the codec discards count as equal.
        Raises what `encode` raises.
        """
        c = self.config
        if features.ndim != 2 or features.shape[1] != c.feature_dim:
            raise UsageError(f"features must be [N, {c.feature_dim}] for this codec, got {features.shape}")
        total = len(features)
        if not 1 <= total <= c.max_grid**2 or isqrt(total) ** 2 != total:
            raise UsageError(f"features must be of a square grid with sides of 1 to {c.max_grid}, got {total} features")
        if n is None:
            n = min(c.rate[0] or total, total)
        with np.errstate(invalid="ignore"):  # `merge` refuses features that are not finite
            return merge(self.components(features), n, c.neighbours)

    def symbols(
        self, components: NDArray[np.floating], grid: int, cells: NDArray[np.int64], quality: int | None = None
    ) -> Symbols:
        """Choose the integers for components [n, M] of features at `cells` [n].

        Raises `UsageError` for a quality outside 0..Q − 1.
        """
        if quality is None:
            quality = self.config.rate[1]
        if not 0 <= quality < self.config.qualities:
            raise UsageError(f"quality must be 0 (the coarsest) to {self.config.qualities - 1}, got {quality}")
        found: Symbols = self.entropy_model.quantise(np.asarray(components, np.float64), grid, cells, quality)
        return found

    def grid_embedding(self, grid: int, positions: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the grid embedding [n, H] of `positions` [n], which the server adds to the projected features.

        It is zero for a grid side that the codec has no embedding for.
        """
        table = self.weights.grid_embedding.get(grid)
        if table is None:
            return np.zeros((len(positions), self.config.hidden), np.float32)
        rows: NDArray[np.float32] = table[positions].astype(np.float32)
        return rows

    def _symbols(self, merged: Merged, quality: int | None) -> Symbols:
        return self.symbols(merged.centroids, isqrt(len(merged.assignment)), merged.centres, quality)

    def _decoded(self, view: Parsed) -> Decoded:
        return Decoded(**vars(view), features=self.dequantise(view.q, view.quality))


def _layout(merged: Merged, quality: int) -> PacketLayout:
    return PacketLayout(grid=isqrt(len(merged.assignment)), cells=tuple(merged.centres.tolist()), quality=quality)
