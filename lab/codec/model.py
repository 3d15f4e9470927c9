"""The codec as a differentiable model: what is trained, and how it becomes integers.

    x [n,D] ─ g_a ─ y [n,M] ─ ÷step, round ─ q ─ ×step ─ g_s ─ x̂ [n,D]
                                └ context ─ mean, scale ─ bits of q

Promises gradients through the rounding of q, straight. The conditional distribution is compressai's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lab.codec.compressai_parts import GaussianConditional
from lab.codec.context import Context
from lab.codec.places import Places
from shared.codec.weights import STAGES, CodecWeights

SCALES = 20  # of the conditional distribution, geometric
SCALE_MIN, SCALE_MAX = 0.12, 12.0  # in quantisation steps
#: squared steps for a bit; ln 2 / 6 = 0.12 in theory, where steps are short (distortion falls by 2 ln 2 a bit)
BIT_PRICE = 0.065
#: entropy of components by themselves over what the context model leaves of it, about
ALONE = 2.5


def scale_of(index: Tensor) -> Tensor:
    """Scale index (may be fractional) → scale in quantisation steps."""
    return SCALE_MIN * torch.exp(index * (math.log(SCALE_MAX / SCALE_MIN) / (SCALES - 1)))


def index_of(scale: Tensor) -> Tensor:
    """Scale in quantisation steps → scale index, inside the tables' range."""
    return torch.log(scale.clamp(SCALE_MIN, SCALE_MAX) / SCALE_MIN) * (SCALES - 1) / math.log(SCALE_MAX / SCALE_MIN)


def ste_round(x: Tensor) -> Tensor:
    """Round, gradient of the identity."""
    return x + (x.round() - x).detach()


def bound(x: Tensor, least: float) -> Tensor:
    """At least ``least``; below it the gradient still passes, so that what is too unlikely can recover."""
    return x + (x.clamp(min=least) - x).detach()


class CodecModel(nn.Module):
    """Transform, quantiser and context model of all qualities: one set of weights.

    A quality has steps of its own (the gain vectors of variable-rate compression, Cui et al., 2021) and biases in the
    context model.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, *, dim: int, components: int, hidden: int, qualities: int) -> None:
        super().__init__()
        self.components, self.qualities = components, qualities
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(()))
        self.analysis = nn.Parameter(torch.zeros(components, dim))  # acts on (x − mean) / spread
        self.synthesis = nn.Parameter(torch.zeros(dim, components))
        self.log_step = nn.Parameter(torch.zeros(qualities, components))
        self.context = Context(components, hidden, qualities, SCALES / 2)
        self.gaussian_conditional = GaussianConditional(None, scale_bound=SCALE_MIN)

    @torch.no_grad()
    def start_from(self, x: Tensor, measure: Tensor, bits: Sequence[float]) -> None:
        """Principal components of the features x [T, D] as ``measure`` [D, D] weighs their errors.

        The components are those of ``measure @ x``, and the synthesis is the least-squares estimate of x
        from them. Steps are all alike, and such that a feature costs about ``bits`` [Q].
        """
        self.mean.copy_(x.mean(0))
        self.spread.copy_((x - self.mean).std())
        centred = ((x - self.mean) / self.spread).double()
        covariance = centred.T @ centred / len(x)
        w = measure.double()
        values, vectors = torch.linalg.eigh(w @ covariance @ w.T)
        u, power = vectors[:, -self.components :].flip(1), values[-self.components :].flip(0)  # [D, M]
        unit = power[:24].mean().sqrt()
        self.analysis.copy_((u.T @ w) / unit)
        self.synthesis.copy_(covariance @ w.T @ u / power * unit)
        self.log_step.zero_()
        self.space_steps(x, bits)

    @torch.no_grad()
    def continue_from(self, weights: CodecWeights, x: Tensor, bits: Sequence[float]) -> None:
        """Another codec's transform; its finest steps, made longer alike, until features x [T, D] cost ``bits`` [Q]."""
        self.mean.copy_(torch.tensor(weights.mean))
        self.spread.copy_((x - self.mean).std())
        self.analysis.copy_(torch.tensor(weights.analysis) * self.spread)
        self.synthesis.copy_(torch.tensor(weights.synthesis) / self.spread)
        self.log_step.copy_(torch.tensor(weights.step[-1]).log())
        self.space_steps(x, bits)

    @torch.no_grad()
    def space_steps(self, x: Tensor, bits: Sequence[float]) -> None:
        """Makes the finest quality's steps longer alike until features x [T, D] cost about ``bits``, one after another.

        The scales that the context model begins with go along.

        The entropy of each rounded component by itself is ``ALONE`` times what the context model later leaves of it.
        """
        finest = self.log_step[-1].clone()
        for quality, wanted in enumerate(bits):
            self.log_step[quality] = finest
            low, high = -4.0, 8.0  # of the logarithm
            for _ in range(24):
                middle = (low + high) / 2
                q = (self.quantise(x, quality) / math.exp(middle)).round().long()
                counts = [torch.unique(column, return_counts=True)[1].double() / len(q) for column in q.T]
                cost = sum(float(-(p * p.log2()).sum()) for p in counts) / ALONE
                low, high = (middle, high) if cost > wanted else (low, middle)
            self.log_step[quality] += (low + high) / 2
            self.context.out_b[quality, 1] = index_of(self.quantise(x, quality).std(0))

    def project(self, x: Tensor) -> Tensor:
        """Features [T, D] → components [T, M]."""
        return ((x - self.mean) / self.spread) @ self.analysis.T

    def quantise(self, x: Tensor, quality: int) -> Tensor:
        """Features [T, D] → y in quantisation steps [T, M], not yet rounded."""
        return self.project(x) / self.log_step[quality].exp()

    def dequantise(self, q: Tensor, quality: int) -> Tensor:
        """Quantised components [T, M] → features [T, D]."""
        return (q * self.log_step[quality].exp()) @ self.synthesis.T * self.spread + self.mean

    def forward(self, x: Tensor, quality: int, places: Places) -> tuple[Tensor, Tensor]:
        """Features [T, D] → (x̂ [T, D], bits of each feature [T])."""
        y = self.quantise(x, quality)
        q, bits = self.code(y, quality, places)
        return self.dequantise(q, quality), bits

    def code(self, y: Tensor, quality: int, places: Places, price: float = BIT_PRICE) -> tuple[Tensor, Tensor]:
        """Components in steps [T, M] → (what is coded of them [T, M], bits of each feature [T]).

        Quantised as the encoder does, in coding order: each component one step towards its prediction where that
        saves bits at their ``price``. Gradients pass the rounding straight.

        Of the rounded values: uniform noise instead overrates components that are nearly always 0, twofold here.
        """
        known = self.context.nothing(places)
        order: list[Tensor] = []
        found: list[Tensor] = []
        costs: list[Tensor] = []
        for stage in range(STAGES):
            rows = (places.stage == stage).nonzero()[:, 0]
            near = known[places.around[rows]] if stage else None
            done = y[:0].new_zeros(len(rows), 0)
            bits = y.new_zeros(len(rows))
            for index, (first, last) in enumerate(self.context.spans):
                mean, scale = self.context.expect(index, done, near, stage, quality)
                q, cost = self._chosen(y[rows, first:last], mean, scale_of(scale.clamp(0, SCALES - 1)), price)
                done, bits = torch.cat([done, q], dim=1), bits + cost.sum(1)
            known = known.index_put((rows,), self.context.embed(done, quality))
            order, found, costs = [*order, rows], [*found, done], [*costs, bits]
        back = torch.cat(order).argsort()
        return torch.cat(found)[back], torch.cat(costs)[back]

    def _chosen(self, y: Tensor, mean: Tensor, scale: Tensor, price: float) -> tuple[Tensor, Tensor]:
        """Components in steps, what is expected of them → (whole steps, bits of each)."""
        with torch.no_grad():
            nearest = y.round()
            shorter = nearest - torch.sign(nearest - mean.round())
            saved = (self._likelihood(shorter, scale, mean) / self._likelihood(nearest, scale, mean)).log2()
            worth = (y - shorter).square() - (y - nearest).square() < price * saved
            chosen = torch.where(worth, shorter, nearest)
        q = y + (chosen - y).detach()
        return q, -bound(self._likelihood(q, scale, mean), 1e-9).log2()

    def _likelihood(self, q: Tensor, scale: Tensor, mean: Tensor) -> Tensor:
        return cast(Tensor, self.gaussian_conditional._likelihood(q, scale, means=mean)).clamp(min=1e-12)
