"""Features as a codec leaves them, so that the decoder knows such ones: before there is a codec, and after.

Before, a few principal components of the features, rounded to long steps; that promises nothing about bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lab.codec.places import View
from shared.codec.codec import Codec


class Coarsen(Protocol):
    """Makes features [T, D] of some views coarse."""

    def draw(
        self, rng: np.random.Generator, features: NDArray[np.float32], views: Sequence[View]
    ) -> NDArray[np.float32]: ...


class Rough:
    """Principal components of features [T, D]."""

    def __init__(self, features: NDArray[np.float32], most: int = 64) -> None:
        self.mean = features.mean(0)
        centred = features - self.mean
        power, vectors = np.linalg.eigh(centred.T @ centred / len(features))
        self.vectors = np.ascontiguousarray(vectors[:, ::-1][:, :most])  # [D, most], most power first
        self.unit = float(np.sqrt(power[::-1][:24].mean()))

    def draw(
        self, rng: np.random.Generator, features: NDArray[np.float32], views: Sequence[View] = ()
    ) -> NDArray[np.float32]:
        """[T, D] → [T, D] through a random number of components and a random step."""
        vectors = self.vectors[:, : int(rng.integers(24, self.vectors.shape[1] + 1))]
        step = self.unit * float(np.exp(rng.uniform(np.log(0.5), np.log(2.5))))
        rounded = np.rint((features - self.mean) @ vectors / step) * step
        found: NDArray[np.float32] = (rounded @ vectors.T + self.mean).astype(np.float32)
        return found


class Coded:
    """What a codec leaves of features."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def draw(
        self, rng: np.random.Generator, features: NDArray[np.float32], views: Sequence[View]
    ) -> NDArray[np.float32]:
        """[T, D] → [T, D] as the decoder of packets gives them, at a random quality."""
        quality = int(rng.integers(self.codec.config.qualities))
        parts = np.split(features, np.cumsum([len(cells) for _, cells in views])[:-1])
        found = []
        for part, (grid, cells) in zip(parts, views, strict=True):
            symbols = self.codec.symbols(self.codec.components(part), grid, cells, quality)
            found.append(self.codec.dequantise(symbols.q, quality))
        return np.concatenate(found)
