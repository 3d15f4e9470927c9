"""Noise like that of a codec. A decoder that is trained with it learns to read decoded features.

Before there is a codec, `PcaNoise` keeps a few principal components and rounds them to long steps; it promises nothing
about bytes. Once there is one, `CodecNoise` is the codec's own rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tofc.codec.codec import Codec
from tofc_lab.codec.places import View


class FeatureNoise(Protocol):
    """A way to distort the features [T, D] of some views."""

    def apply(
        self, rng: np.random.Generator, features: NDArray[np.float32], views: Sequence[View]
    ) -> NDArray[np.float32]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class PcaNoise:
    """Rounding of principal components."""

    mean: NDArray[np.float32]  # [D]
    vectors: NDArray[np.float32]  # [D, components], the largest power first
    unit: float  # length of a step

    @classmethod
    def fit(cls, features: NDArray[np.float32], most: int = 64) -> Self:
        """Compute up to `most` principal components of features [T, D]."""
        mean = features.mean(0)
        centred = features - mean
        power, vectors = np.linalg.eigh(centred.T @ centred / len(features))
        return cls(
            mean=mean,
            vectors=np.ascontiguousarray(vectors[:, ::-1][:, :most]),
            unit=float(np.sqrt(power[::-1][:24].mean())),
        )

    def apply(
        self, rng: np.random.Generator, features: NDArray[np.float32], views: Sequence[View] = ()
    ) -> NDArray[np.float32]:
        """Return [T, D] with a random number of components kept, rounded to a random step."""
        vectors = self.vectors[:, : int(rng.integers(24, self.vectors.shape[1] + 1))]
        step = self.unit * float(np.exp(rng.uniform(np.log(0.5), np.log(2.5))))
        rounded = np.rint((features - self.mean) @ vectors / step) * step
        found: NDArray[np.float32] = (rounded @ vectors.T + self.mean).astype(np.float32)
        return found


@dataclass(frozen=True)
class CodecNoise:
    """Encoding and decoding by a codec."""

    codec: Codec

    def apply(
        self, rng: np.random.Generator, features: NDArray[np.float32], views: Sequence[View]
    ) -> NDArray[np.float32]:
        """Return [T, D] as decoded from packets of a random quality."""
        quality = int(rng.integers(self.codec.config.qualities))
        parts = np.split(features, np.cumsum([len(cells) for _, cells in views])[:-1])
        found = []
        for part, (grid, cells) in zip(parts, views, strict=True):
            symbols = self.codec.symbols(self.codec.components(part), grid, cells, quality)
            found.append(self.codec.dequantise(symbols.q, quality))
        return np.concatenate(found)
