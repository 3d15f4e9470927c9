"""Codebooks by entropy-constrained vector quantisation (Chou, Lookabaugh and Gray 1989), one stage after another.

    components ─ codebook 0 ─ residual ─ codebook 1 ─ residual ─ …

Each codebook is fitted as plain k-means first, then with the price of bits, which removes codewords that do not pay.
Codebooks of residuals are fitted at a higher price: few residuals are worth their bits, and the codebook is then
about those.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 8192  # vectors whose distances are computed at once


class Codebook(NamedTuple):
    """K codewords [K, M], and the bits [K] of their indices when nothing is known."""

    codewords: Tensor
    bits: Tensor


def fit(points: Tensor, size: int, weight: float, rounds: int, seed: int) -> tuple[Codebook, float]:
    """Fit at most `size` codewords to points [T, M]; return them and the mean squared distance of plain k-means.

    A bit costs `weight` times that distance.
    """
    size = min(size, max(2, len(points) // 4))
    start = np.random.default_rng(seed).choice(len(points), size, replace=False)
    codewords, bits, price, plain = points[torch.from_numpy(np.sort(start))], torch.zeros(size), 0.0, 0.0
    for priced in (False, True):
        for _ in range(rounds):
            codewords, lengths, distance = refit(points, codewords, bits, price)
            plain = plain if priced else distance
            bits = lengths if priced else torch.zeros(len(codewords))
        price = weight * plain
    counts = torch.bincount(nearest(points, codewords, bits, price)[0], minlength=len(codewords)) + 0.5
    order = counts.argsort(descending=True, stable=True)
    return Codebook(codewords[order], -torch.log2(counts / counts.sum())[order]), plain


def refit(points: Tensor, codewords: Tensor, bits: Tensor, price: float) -> tuple[Tensor, Tensor, float]:
    """Make one round of entropy-constrained k-means on points [T, M].

    Returns the codewords that are in use [K, M], moved to the means of their cells, the bits of their indices [K], and
    the mean squared distance before the move.
    """
    index, distance = nearest(points, codewords, bits, price)
    counts = torch.bincount(index, minlength=len(codewords))
    used = counts > 0
    sums = torch.zeros_like(codewords).index_add_(0, index, points)
    moved = (sums / counts.clamp(min=1)[:, None])[used]
    return moved, -torch.log2(counts[used] / counts.sum()), float(distance.mean())


def nearest(points: Tensor, codewords: Tensor, bits: Tensor, price: float) -> tuple[Tensor, Tensor]:
    """Return each point's cheapest codeword [T], by squared distance plus price times bits, and the distance [T]."""
    norms = codewords.square().sum(1) + price * bits
    index, distance = [], []
    for block in points.split(BLOCK):
        best = torch.addmm(norms, block, codewords.T, alpha=-2).argmin(1)
        index.append(best)
        distance.append((block - codewords[best]).square().sum(1))
    return torch.cat(index), torch.cat(distance)
