"""Indices in coding order through one range coder: the index codec's entropy model.

Promises that every decoded index is within its codebook. Leaves the bytes to `packet`, and to `codec` the check that a
payload is the one that an encoder writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tofc.codec.index.chooser import IndexChooser
from tofc.codec.index.context_model import IndexContextModel, Wave
from tofc.codec.index.probabilities import cumulative, weights_of
from tofc.codec.index.symbols import IndexSymbols
from tofc.codec.integer_net import Floats, Ints
from tofc.codec.range_coder import COUNT_BITS, Interval, RangeDecoder, RangeEncoder

if TYPE_CHECKING:
    from tofc.codec.index.weights import IndexWeights


class IndexEntropyModel:
    """See `tofc.codec.entropy_model.EntropyModel`. Safe to share between threads."""

    def __init__(self, weights: IndexWeights) -> None:
        self._context = IndexContextModel(weights)
        self._chooser = IndexChooser(weights, self._context)
        self._exp2 = weights.exp2.astype(np.int64)
        self._stages = weights.config.stages
        self._codewords = [words.astype(np.float32) for words in weights.codewords()]
        #: an upper bound of the bits that the indices of one feature can cost
        self.max_feature_bits = (COUNT_BITS + 1) * self._stages

    def quantise(self, y: Floats, grid: int, cells: Ints, quality: int) -> IndexSymbols:
        """Choose the indices of components [n, M] by rate and distortion."""
        chosen = np.zeros((len(cells), self._stages), np.int64)

        def choose(wave: Wave, stage: int, logits: Floats, _: Ints) -> Ints:
            if stage == 0:
                chosen[wave.rows] = self._chooser.choose(y[wave.rows], wave, logits, quality)
            index: Ints = chosen[wave.rows, stage]
            return index

        return self._walk(grid, cells, quality, choose)

    def bits(self, symbols: IndexSymbols) -> Floats:
        """Return the ideal bits of each feature [n]."""
        each = COUNT_BITS - np.log2(symbols.count)
        total: Floats = np.bincount(symbols.feature, each, len(symbols.q)).astype(np.float64)
        return total

    def encode(self, symbols: IndexSymbols) -> Interval:
        """Encode the indices of a view."""
        encoder = RangeEncoder()
        encoder.encode_counts(symbols.first.tolist(), symbols.count.tolist())
        return encoder.interval()

    def decode(self, data: bytes, grid: int, cells: Ints, quality: int) -> tuple[IndexSymbols, Interval]:
        """Decode the indices of features at `cells`, at a quality; also return the interval that they encode to.

        Raises `ValueError` for bytes that no encoder writes.
        """
        decoder = RangeDecoder(data)

        def decode(_wave: Wave, _stage: int, _logits: Floats, counts: Ints) -> Ints:
            return np.array(decoder.decode(counts, COUNT_BITS), np.int64)

        return self._walk(grid, cells, quality, decode), decoder.interval()

    def values(self, q: NDArray[np.integer], quality: int) -> NDArray[np.float32]:
        """Return the components [n, M] that indices [n, S] stand for: the sum of their codewords."""
        found: NDArray[np.float32] = self._codewords[0][q[:, 0]]
        for stage in range(1, self._stages):
            found = found + self._codewords[stage][q[:, stage]]
        return found

    def _walk(
        self, grid: int, cells: Ints, quality: int, index_of: Callable[[Wave, int, Floats, Ints], Ints]
    ) -> IndexSymbols:
        """Ask for the indices of every wave and stage in coding order.

        `index_of` takes wave, stage, the logits [n', K] and the cumulative counts [n', K + 1], and returns them [n'].
        """
        q = np.zeros((len(cells), self._stages), np.int64)
        done: list[tuple[Ints, Ints, Ints]] = []  # features, the counts before each index, its own
        for wave in self._context.coding_waves(grid, cells, quality, q):
            here = np.arange(len(wave.rows))
            for stage in range(self._stages):
                own = self._context.embed(q[wave.rows, :stage].T, quality) if stage else None
                logits = self._context.logits(stage, wave.around, own, quality)
                every = cumulative(weights_of(logits, self._exp2))
                index = q[wave.rows, stage] = index_of(wave, stage, logits, every)
                first = every[here, index]
                done.append((wave.rows, first, every[here, index + 1] - first))
        feature, first, count = (np.concatenate(each) for each in zip(*done, strict=True))
        return IndexSymbols(quality=quality, q=q, feature=feature, first=first, count=count)
