"""One vector-quantised index per feature, as in AlignedVQ (arXiv 2411.05961), and entropy-constrained (ECVQ).

    features ─ projector ─ nearest codeword, by distance + λ · bits ─→ index ─→ the codeword's feature

- VQ: k-means, every index at the same length (log2 K bits);
- ECVQ: entropy-constrained (Chou, Lookabaugh and Gray 1989), which gives frequent codewords short indices. Their bits
  come from a static table, or from the neighbours (`index_contexts`).

Promises sizes that favour them, as in `simple`: ideal bits, a header of two bytes, n and positions as for ours, and
nothing for codebooks, tables and nets. Distances are measured behind the projector: the decoder sees nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tofc.codec.merge import merge
from tofc_lab.nano.answerer import Reduce
from tofc_lab.rate_distortion.index_contexts import Context
from tofc_lab.rate_distortion.simple import HEADER, place_bits

ROUNDS = 20  # of k-means, and again with the price of bits
COMPONENTS = 64  # of the projected features: distances within them
BLOCK = 8192  # vectors whose distances are computed at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Codebook:
    """K codewords, and what their indices cost."""

    basis: NDArray[np.float32]  # [C, D]: from a feature, less the mean, to where distances are measured
    mean: NDArray[np.float32]  # [D]
    codewords: NDArray[np.float32]  # [K, C]
    features: NDArray[np.float32]  # [K, D]: the mean feature of each codeword's cell
    price: float  # λ, squared distance per bit
    bits: NDArray[np.float64]  # [K] of an index, without its neighbours

    @classmethod
    def fit(cls, features: NDArray[np.float32], projector: NDArray[np.float64], size: int, weight: float) -> Self:
        """Fit at most `size` codewords to features [T, D].

        `weight`: λ in units of the mean squared distance of plain k-means; 0: plain k-means.
        """
        mean = features.mean(0, dtype=np.float64).astype(np.float32)
        basis = _basis(features - mean, projector)
        points = torch.from_numpy((features - mean) @ basis.T)
        start = np.random.default_rng(0).choice(len(points), size, replace=False)
        codewords, bits, price = points[torch.from_numpy(start)], torch.zeros(size), 0.0
        for pricing in (0.0, weight) if weight else (0.0,):
            price = pricing * float(_assign(points, codewords, bits, 0.0)[1].mean()) if pricing else 0.0
            for _ in range(ROUNDS):
                index, _ = _assign(points, codewords, bits, price)
                counts = torch.bincount(index, minlength=len(codewords))
                used = counts > 0
                sums = torch.zeros_like(codewords).index_add_(0, index, points)
                codewords = (sums / counts.clamp(min=1)[:, None])[used]
                bits = -torch.log2(counts[used] / counts.sum()) if pricing else torch.zeros(len(codewords))
        index, _ = _assign(points, codewords, bits, price)
        cells = index.numpy()
        frequency = np.bincount(cells, minlength=len(codewords)) + 1.0
        total = np.zeros((len(codewords), features.shape[1]))
        np.add.at(total, cells, features)
        even = np.full(len(codewords), log2(len(codewords)))
        return cls(
            basis=basis,
            mean=mean,
            codewords=codewords.numpy(),
            features=(total / np.maximum(frequency - 1, 1)[:, None]).astype(np.float32),
            price=price,
            bits=-np.log2(frequency / frequency.sum()) if weight else even,
        )

    def index(self, features: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the index [n] of each feature [n, D], chosen by distance and the table's bits."""
        points = torch.from_numpy((features - self.mean) @ self.basis.T)
        bits = torch.from_numpy(self.bits.astype(np.float32))
        found: NDArray[np.int64] = _assign(points, torch.from_numpy(self.codewords), bits, self.price)[0].numpy()
        return found

    def reduce(self, n: int, context: Context | None = None) -> Reduce:
        """Return the function that merges a view to at most n features and sends an index for each.

        `context` tells the bits of views that are not merged.
        """

        def reduce(view: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64], float]:
            merged = merge(view, min(n, len(view)))
            index = self.index(merged.centroids)
            side = round(len(view) ** 0.5)
            if context is not None and len(index) == len(view):
                bits = context.bits(index.reshape(side, side))
            else:
                bits = float(self.bits[index].sum())
            size = HEADER + (bits + place_bits(len(index), len(view))) / 8
            return self.features[index], merged.centres.astype(np.int64), size

        return reduce


def _basis(centred: NDArray[np.float32], projector: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the principal components [C, D] of the projected features, as functions of the features."""
    covariance = np.cov(centred, rowvar=False, dtype=np.float64)
    _, vectors = np.linalg.eigh(projector @ covariance @ projector.T)
    basis: NDArray[np.float32] = (vectors[:, ::-1][:, :COMPONENTS].T @ projector).astype(np.float32)
    return basis


def _assign(points: Tensor, codewords: Tensor, bits: Tensor, price: float) -> tuple[Tensor, Tensor]:
    """Return each point's cheapest codeword [T] and its squared distance [T]."""
    norms = codewords.square().sum(1) + price * bits
    index, distance = [], []
    for block in points.split(BLOCK):
        cost = torch.addmm(norms, block, codewords.T, alpha=-2)
        best = cost.argmin(1)
        index.append(best)
        distance.append((block - codewords[best]).square().sum(1))
    return torch.cat(index), torch.cat(distance)
