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
from tofc.codec.index.context_model import IndexContextModel, PartlyCodedView
from tofc.codec.index.probabilities import Counts, spans_of, weights_of
from tofc.codec.index.symbols import IndexSymbols
from tofc.codec.integer_net import Floats, Ints, clipped_relu
from tofc.codec.range_coder import COUNT_BITS, RangeDecoder, RangeEncoder

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
        view = self._context.view(grid, cells, quality)
        rows, distances = self._chooser.start(y[view.order], quality)
        choices = []
        for wave in view.waves:
            choice = self._chooser.choose(rows[wave], distances[wave], view.around(wave), quality)
            view.add(wave, choice.embedded)
            choices.append(choice)
        places = view.places(self._stages)
        coded = np.empty((3, places.size), np.int64)
        for stage in range(self._stages):
            index = np.concatenate([choice.indices[stage] for choice in choices])
            logits = np.concatenate([choice.logits[stage] for choice in choices])
            coded[:, places[:, stage]] = index, *spans_of(weights_of(logits, self._exp2), index)
        return _symbols(quality, view, places, coded)

    def bits(self, symbols: IndexSymbols) -> Floats:
        """Return the ideal bits of each feature [n]."""
        total: Floats = symbols.stage_bits.sum(axis=1)
        return total

    def encode(self, symbols: IndexSymbols, encoder: RangeEncoder) -> None:
        """Encode the indices of a view."""
        encoder.encode_counts(symbols.first.tolist(), symbols.count.tolist())

    def decode(self, decoder: RangeDecoder, grid: int, cells: Ints, quality: int) -> IndexSymbols:
        """Decode the indices of features at `cells`, at a quality.

        Raises `ValueError` for bytes that no encoder writes.
        """
        return self.walk(grid, cells, quality, lambda weights: decoder.decode_by(Counts(weights).find))

    def walk(
        self, grid: int, cells: Ints, quality: int, symbol_of: Callable[[Ints], tuple[int, int, int]]
    ) -> IndexSymbols:
        """Ask for every index in coding order.

        `symbol_of` takes the weights [K] of the stage's indices, and returns an index, the counts out of 2²⁴ before it,
        and its own.
        """
        view = self._context.view(grid, cells, quality)
        coded: list[tuple[int, int, int]] = []
        for wave in view.waves:
            around = view.around(wave)
            sums = self._context.embed_b[quality]
            for stage, embed in enumerate(self._context.embed_w):
                own = clipped_relu(sums) if stage else None
                logits = self._context.logits(stage, around, own, quality)
                found = [symbol_of(each) for each in weights_of(logits, self._exp2)]
                coded += found
                sums = sums + embed[[index for index, _, _ in found]]
            view.add(wave, clipped_relu(sums))
        return _symbols(quality, view, view.places(self._stages), np.array(coded, np.int64).T)

    def values(self, q: NDArray[np.integer], quality: int) -> NDArray[np.float32]:
        """Return the components [n, M] that indices [n, S] stand for: the sum of their codewords."""
        found: NDArray[np.float32] = self._codewords[0][q[:, 0]]
        for stage in range(1, self._stages):
            found = found + self._codewords[stage][q[:, stage]]
        return found


def _symbols(quality: int, view: PartlyCodedView, places: Ints, coded: Ints) -> IndexSymbols:
    """Return a view's symbols: of each, in coding order, its index, the counts before it and its own, [3, n · S]."""
    index, first, count = coded
    q, feature = np.empty_like(places), np.empty_like(index)
    q[view.order] = index[places]
    feature[places] = view.order[:, None]
    return IndexSymbols(quality=quality, q=q, feature=feature, first=first, count=count)
