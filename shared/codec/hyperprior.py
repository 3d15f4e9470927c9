"""The mean-scale hyperprior with experts: what the coder expects of each number of each feature.

    q ── h_a (floats, encoder only) ── z ── h_s of expert e (integers) ── mean [M], table [M]

Promises that h_s is the same integer function on every machine: int8 weights, int64 sums, shifts and
clips. Leaves to ``codec`` the coding of z, of the expert and of the residuals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.codec.tables import symbol_bits
from shared.codec.weights import CodecWeights

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Symbols:
    """The integers of n features: what a packet carries, and what follows from it."""

    experts: Ints  # [n], 0..E−1
    z: Ints  # [n, Z], −Rz..Rz
    residuals: Ints  # [n, M], −R..R
    mean: Ints  # [n, M], −R..R: not sent, `predict` of z and experts
    table: Ints  # [n, M], 0..T−1: likewise

    @property
    def q(self) -> Ints:
        """The quantised components [n, M]."""
        return self.mean + self.residuals


def h_a(weights: CodecWeights, q: Ints) -> Ints:
    """Quantised components [n, M] → hyper symbols [n, Z]. Any z decodes; a good one is cheap."""
    hidden = np.maximum(q @ weights.ha_w1.T.astype(np.float64) + weights.ha_b1, 0)
    z = np.rint(hidden @ weights.ha_w2.T.astype(np.float64) + weights.ha_b2)
    limit = weights.config.hyper_range
    clipped: Ints = np.clip(z, -limit, limit).astype(np.int64)
    return clipped


def h_s(weights: CodecWeights, z: Ints, expert: int) -> tuple[Ints, Ints]:
    """Hyper symbols [n, Z] → (mean, table), each [n, M], as one expert sees it. Integers throughout.

    h = clip((W₁z + b₁) >> shift1, 0, 255); o = W₂h + b₂, whose first half says where the mean is, in
    2^−fraction of a step, the second the scale; ``>>`` rounds down. The table is that of the scale and of what
    is left of the mean.
    """
    c = weights.config
    w1, w2 = weights.hs_w1[expert].astype(np.int64), weights.hs_w2[expert].astype(np.int64)
    h = np.clip((z @ w1.T + weights.hs_b1[expert]) >> c.shift1, 0, 255)  # [n, F]
    o = h @ w2.T + weights.hs_b2[expert]  # [n, 2M]
    place = o[:, : c.components] >> c.shift2 - c.fraction
    mean = np.clip(place >> c.fraction, -c.residual_range, c.residual_range)
    scale = np.clip(o[:, c.components :] >> c.shift2, 0, (c.tables >> c.fraction) - 1)
    return mean, scale << c.fraction | place & (1 << c.fraction) - 1


def predict(weights: CodecWeights, z: Ints, experts: Ints) -> tuple[Ints, Ints]:
    """(mean, table), each [n, M], with each feature's own expert [n]."""
    mean = np.empty((len(z), weights.config.components), np.int64)
    table = np.empty_like(mean)
    for expert in np.unique(experts):
        mine = experts == expert
        mean[mine], table[mine] = h_s(weights, z[mine], int(expert))
    return mean, table


class Chooser:
    """Finds the symbols of quantised components: the encoder's half, which may use floats."""

    def __init__(self, weights: CodecWeights) -> None:
        self._weights = weights
        self._z_bits = symbol_bits(weights.z_tables)
        self._y_bits = symbol_bits(weights.y_tables)
        table = weights.expert_table
        self._expert_bits = np.zeros(1) if table is None else symbol_bits(table)

    def choose(self, q: Ints) -> Symbols:
        """Components [n, M] → symbols. Tries every expert for every feature and keeps the cheapest.

        A residual beyond ±R is clipped; an expert that has to clip less always wins.
        """
        z = h_a(self._weights, q)
        limit = self._weights.config.residual_range
        clipped, costs = [], []
        for expert in range(self._weights.config.experts):
            mean, table = h_s(self._weights, z, expert)
            residuals = np.clip(q - mean, -limit, limit)
            clipped.append(np.abs(q - mean - residuals).sum(axis=1))
            costs.append(self._y_bits[table, residuals + limit].sum(axis=1) + self._expert_bits[expert])
        lost = np.stack(clipped)  # [E, n]
        experts = np.where(lost == lost.min(axis=0), np.stack(costs), np.inf).argmin(axis=0)
        mean, table = predict(self._weights, z, experts)
        return Symbols(experts=experts, z=z, residuals=np.clip(q - mean, -limit, limit), mean=mean, table=table)

    def bits(self, symbols: Symbols) -> NDArray[np.float64]:
        """The ideal cost of each feature [n] in bits, by the tables: expert, z and residuals."""
        c = self._weights.config
        y = self._y_bits[symbols.table, symbols.residuals + c.residual_range].sum(axis=1)
        z = self._z_bits[np.arange(c.hyper), symbols.z + c.hyper_range].sum(axis=1)
        total: NDArray[np.float64] = y + z + self._expert_bits[symbols.experts]
        return total
