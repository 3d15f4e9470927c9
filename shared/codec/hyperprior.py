"""The mean-scale hyperprior with experts: what the coder expects of each number of each feature.

    q ── h_a (floats, encoder only) ── z ── h_s of expert e (integers) ── mean [M], table [M]

Promises that h_s is the same integer function on every machine: int8 weights, exact sums, shifts and
clips. Leaves to ``codec`` the coding of z, of the expert and of the residuals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.codec.tables import symbol_bits
from shared.codec.weights import CodecWeights

Ints = NDArray[np.int64]
#: rounds in which an encoder tries the neighbours of each hyper symbol
SEARCHES = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Symbols:
    """The integers of n features: what a packet carries, and what follows from it."""

    quality: int  # of all of them
    experts: Ints  # [n], 0..E−1
    z: Ints  # [n, Z], −Rz..Rz
    residuals: Ints  # [n, M], −R..R
    mean: Ints  # [n, M], −R..R: not sent, `predict` of z, experts and quality
    table: Ints  # [n, M], 0..T−1: likewise

    @property
    def q(self) -> Ints:
        """The quantised components [n, M]."""
        return self.mean + self.residuals


def h_a(weights: CodecWeights, q: Ints, quality: int) -> Ints:
    """Quantised components [n, M] → hyper symbols [n, Z]. Any z decodes; a good one is cheap."""
    hidden = np.maximum(q @ weights.ha_w1.T.astype(np.float64) + weights.ha_b1[quality], 0)
    z = np.rint(hidden @ weights.ha_w2.T.astype(np.float64) + weights.ha_b2)
    limit = weights.config.hyper_range
    clipped: Ints = np.clip(z, -limit, limit).astype(np.int64)
    return clipped


def h_s(weights: CodecWeights, z: Ints, expert: int, quality: int) -> tuple[Ints, Ints]:
    """Hyper symbols [n, Z] → (mean, table), each [n, M], as one expert sees it at a quality. Integers throughout.

    h = clip((W₁z + b₁) >> shift1, 0, 255); o = W₂h + b₂, whose first half says where the mean is, in
    2^−fraction of a step, the second the scale; ``>>`` rounds down. The table is that of the scale and of what
    is left of the mean.
    """
    c = weights.config
    h = np.clip((_product(z, weights.hs_w1[expert]) + weights.hs_b1[quality, expert]) >> c.shift1, 0, 255)  # [n, F]
    o = _product(h, weights.hs_w2[expert]) + weights.hs_b2[quality, expert]  # [n, 2M]
    place = o[:, : c.components] >> c.shift2 - c.fraction
    mean = np.clip(place >> c.fraction, -c.residual_range, c.residual_range)
    scale = np.clip(o[:, c.components :] >> c.shift2, 0, (c.tables >> c.fraction) - 1)
    return mean, scale << c.fraction | place & (1 << c.fraction) - 1


def _product(a: Ints, w: NDArray[np.int8]) -> Ints:
    """Exactly a @ wᵀ: in float64 every product and sum here is an integer below 2⁵³, in whatever order.

    The format's bounds keep them below 2³¹; numpy has no library for integers and takes several times as long.
    """
    found: Ints = (a.astype(np.float64) @ w.T.astype(np.float64)).astype(np.int64)
    return found


def predict(weights: CodecWeights, z: Ints, experts: Ints, quality: int) -> tuple[Ints, Ints]:
    """(mean, table), each [n, M], with each feature's own expert [n]."""
    mean = np.empty((len(z), weights.config.components), np.int64)
    table = np.empty_like(mean)
    for expert in np.unique(experts):
        mine = experts == expert
        mean[mine], table[mine] = h_s(weights, z[mine], int(expert), quality)
    return mean, table


@dataclass(frozen=True, kw_only=True, eq=False)
class _Choice:
    """One way to code each of n features."""

    z: Ints  # [n, Z]
    experts: Ints  # [n]
    residuals: Ints  # [n, M]


class Chooser:
    """Finds the symbols of quantised components: the encoder's half, which may use floats."""

    def __init__(self, weights: CodecWeights) -> None:
        self._weights = weights
        self._z_bits = symbol_bits(weights.z_tables)
        self._y_bits = symbol_bits(weights.y_tables)
        table = weights.expert_table
        self._expert_bits = np.zeros((weights.config.qualities, 1)) if table is None else symbol_bits(table)
        one = np.eye(weights.config.hyper, dtype=np.int64)
        self._steps = np.concatenate([np.zeros_like(one[:1]), one, -one])[:, None]  # [1 + 2 Z, 1, Z]

    def choose(self, y: NDArray[np.float64], quality: int) -> Symbols:
        """Components in steps [n, M] → symbols. Tries every expert, and z one up and down, and keeps the cheapest.

        Quantisation weighs rate against distortion: a residual goes one step towards the prediction where
        that saves more bits than the codec's price of them in squared steps. A residual beyond ±R is clipped; an
        expert that has to clip less always wins.
        """
        c, price = self._weights.config, float(self._weights.bit_price[quality])
        limit = 2 * c.residual_range  # predicted mean plus residual
        q = np.clip(np.rint(y), -limit, limit).astype(np.int64)
        best = self._tried(y, q, h_a(self._weights, q, quality)[None], quality, price)
        for _ in range(SEARCHES):
            best = self._tried(y, q, np.clip(best.z + self._steps, -c.hyper_range, c.hyper_range), quality, price)
        z, experts = best.z, best.experts
        mean, table = predict(self._weights, z, experts, quality)
        return Symbols(quality=quality, experts=experts, z=z, residuals=best.residuals, mean=mean, table=table)

    def _tried(self, y: NDArray[np.float64], q: Ints, z: Ints, quality: int, price: float) -> _Choice:
        """Of the hyper symbols z [C, n, Z] and all experts the best for each feature."""
        c, many, n = self._weights.config, len(z), len(q)
        flat = z.reshape(-1, c.hyper)
        y, q = np.tile(y, (many, 1)), np.tile(q, (many, 1))
        tried = [self._residuals(y, q, flat, expert, quality, price) for expert in range(c.experts)]
        lost = np.stack([clipped for _, clipped, _ in tried]).reshape(-1, n)  # [E · C, n]
        costs = np.stack([cost for _, _, cost in tried]) + self._expert_bits[quality][:, None]
        costs = costs + self._z_bits[quality, np.arange(c.hyper), flat + c.hyper_range].sum(axis=1)
        best = np.where(lost == lost.min(axis=0), costs.reshape(-1, n), np.inf).argmin(axis=0)
        every = np.arange(n)
        residuals = np.concatenate([one for one, _, _ in tried]).reshape(-1, n, c.components)
        return _Choice(z=z[best % many, every], experts=best // many, residuals=residuals[best, every])

    def _residuals(
        self, y: NDArray[np.float64], q: Ints, z: Ints, expert: int, quality: int, price: float
    ) -> tuple[Ints, Ints, NDArray[np.float64]]:
        """Under one expert: residuals [n, M], how many steps were clipped off [n], bits + squared error / price [n]."""
        limit = self._weights.config.residual_range
        mean, table = h_s(self._weights, z, expert, quality)
        nearest = np.clip(q - mean, -limit, limit)
        shorter = nearest - np.sign(nearest)
        bits, fewer = (self._y_bits[table, r + limit] for r in (nearest, shorter))
        error, more = (np.square(y - mean - r) for r in (nearest, shorter))
        worth = more - error < price * (bits - fewer)
        residuals = np.where(worth, shorter, nearest)
        cost = np.where(worth, fewer, bits)
        if price:  # otherwise every expert leaves the same, smallest error
            cost = cost + np.where(worth, more, error) / price
        return residuals, np.abs(q - mean - nearest).sum(axis=1), cost.sum(axis=1)

    def bits(self, symbols: Symbols) -> NDArray[np.float64]:
        """The ideal cost of each feature [n] in bits, by the tables: expert, z and residuals."""
        c = self._weights.config
        y = self._y_bits[symbols.table, symbols.residuals + c.residual_range].sum(axis=1)
        z = self._z_bits[symbols.quality, np.arange(c.hyper), symbols.z + c.hyper_range].sum(axis=1)
        total: NDArray[np.float64] = y + z + self._expert_bits[symbols.quality, symbols.experts]
        return total
