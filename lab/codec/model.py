"""The codec as a differentiable model: what is trained, and how it becomes integers.

    x [n,D] ─ g_a ─ y [n,M] ─ ÷step, round ─ q ─────────────────── ×step ─ g_s ─ x̂ [n,D]
                               └ h_a ─ z ─ round ─ h_s ─ mean, scale ─ bits of q

Promises gradients through the rounding of q and z, straight. Entropy models are compressai's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.codec.compressai_parts import EntropyBottleneck, GaussianConditional
from shared.codec.weights import CodecWeights

SCALES = 20  # of the conditional distribution, geometric
SCALE_MIN, SCALE_MAX = 0.12, 12.0  # in quantisation steps
FRACTION = 3  # bits: a predicted mean is a multiple of an eighth of a step
SHIFT1, SHIFT2 = 3, 9
UNIT1, UNIT2 = 64, 64  # integer weights per unit of the trained ones
HIDDEN_MAX = 255
#: squared steps for a bit; ln 2 / 6 = 0.12 in theory, where steps are short (distortion falls by 2 ln 2 a bit)
BIT_PRICE = 0.065


def scale_of(index: Tensor) -> Tensor:
    """Scale index (may be fractional) → scale in quantisation steps."""
    return SCALE_MIN * torch.exp(index * (math.log(SCALE_MAX / SCALE_MIN) / (SCALES - 1)))


def ste_round(x: Tensor) -> Tensor:
    """Round, gradient of the identity."""
    return x + (x.round() - x).detach()


def bound(x: Tensor, least: float) -> Tensor:
    """At least ``least``; below it the gradient still passes, so that what is too unlikely can recover."""
    return x + (x.clamp(min=least) - x).detach()


class HyperSynthesis(nn.Module):
    """h_s: z [n, Z] → (mean in steps, scale index), each [n, M]. A quality has biases of its own.

    Trained in floats. Rounded in training, with gradients passed straight through, it cost a fifth more bits
    and did not settle; rounded once, at the end, half a bit of nineteen (docs/decisions.md).
    """

    def __init__(self, hyper: int, hidden: int, components: int, qualities: int) -> None:
        super().__init__()
        self.components = components
        self.w1 = nn.Parameter(torch.randn(hidden, hyper) * 0.3)
        self.b1 = nn.Parameter(torch.rand(hidden).repeat(qualities, 1))
        self.w2 = nn.Parameter(torch.randn(2 * components, hidden) * 0.02)
        start = torch.cat([torch.zeros(components), torch.full((components,), SCALES / 2)])
        self.b2 = nn.Parameter(start.repeat(qualities, 1))

    def forward(self, z: Tensor, quality: int) -> tuple[Tensor, Tensor]:
        h = ((z @ self.w1.T + self.b1[quality]) * (UNIT1 / (1 << SHIFT1))).clamp(0, HIDDEN_MAX)
        mean, scale = (h @ self.w2.T * (UNIT2 / (1 << SHIFT2)) + self.b2[quality]).split(self.components, dim=-1)
        return mean, scale.clamp(0, SCALES - 1)

    @torch.no_grad()
    def integers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(W1, b1, W2, b2) as ``shared.codec.hyperprior.h_s`` takes them: halves make its floors round."""
        w1, w2 = ((w * unit).round().clamp(-127, 127) for w, unit in ((self.w1, UNIT1), (self.w2, UNIT2)))
        half = torch.full_like(self.b2, 1 << SHIFT2 - 1)
        half[:, : self.components] += (
            1 << SHIFT2 - 1 - FRACTION
        )  # a mean first to its fraction of a step, then to a step
        b2 = (self.b2 * (1 << SHIFT2) + half).round()
        return w1, (self.b1 * UNIT1 + (1 << SHIFT1 - 1)).round(), w2, b2


class CodecModel(nn.Module):
    """Transform, quantiser and hyperprior of all qualities: one set of weights.

    A quality has steps of its own (the gain vectors of variable-rate compression, Cui et al., 2021), biases in h_a
    and h_s, and a density of z.
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self, *, dim: int, components: int, hyper: int, hidden: int, qualities: int, hyper_range: int = 7
    ) -> None:
        super().__init__()
        self.components, self.hyper, self.hyper_range, self.qualities = components, hyper, hyper_range, qualities
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(()))
        self.analysis = nn.Parameter(torch.zeros(components, dim))  # acts on (x − mean) / spread
        self.synthesis = nn.Parameter(torch.zeros(dim, components))
        self.log_step = nn.Parameter(torch.zeros(qualities, components))
        self.h_a = nn.ModuleList([nn.Linear(components, hidden), nn.Linear(hidden, hyper)])
        self.h_a_bias = nn.Parameter(torch.zeros(qualities, hidden))
        self.h_s = HyperSynthesis(hyper, hidden, components, qualities)
        self.entropy_bottlenecks = nn.ModuleList(EntropyBottleneck(hyper) for _ in range(qualities))
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

        The scales that h_s begins with go along.

        The entropy of each rounded component by itself is a quarter more than what h_s later leaves of it.
        """
        finest = self.log_step[-1].clone()
        for quality, wanted in enumerate(bits):
            self.log_step[quality] = finest
            low, high = -4.0, 8.0  # of the logarithm
            for _ in range(24):
                middle = (low + high) / 2
                q = (self.quantise(x, quality) / math.exp(middle)).round().long()
                counts = [torch.unique(column, return_counts=True)[1].double() / len(q) for column in q.T]
                cost = 0.8 * sum(float(-(p * p.log2()).sum()) for p in counts)
                low, high = (middle, high) if cost > wanted else (low, middle)
            self.log_step[quality] += (low + high) / 2
            spread = self.quantise(x, quality).std(0).clamp(SCALE_MIN, SCALE_MAX)
            index = torch.log(spread / SCALE_MIN) * (SCALES - 1) / math.log(SCALE_MAX / SCALE_MIN)
            self.h_s.b2[quality, self.components :] = index

    def quantise(self, x: Tensor, quality: int) -> Tensor:
        """Features [T, D] → y in quantisation steps [T, M], not yet rounded."""
        return ((x - self.mean) / self.spread) @ self.analysis.T / self.log_step[quality].exp()

    def dequantise(self, q: Tensor, quality: int) -> Tensor:
        """Quantised components [T, M] → features [T, D]."""
        return (q * self.log_step[quality].exp()) @ self.synthesis.T * self.spread + self.mean

    def hyper_symbols(self, q: Tensor, quality: int) -> Tensor:
        """Quantised components → z before rounding, kept inside the coded range."""
        first, last = self.h_a
        z = last(F.relu(first(q) + self.h_a_bias[quality]))
        return cast(Tensor, z).clamp(-self.hyper_range, self.hyper_range)

    def forward(self, x: Tensor, quality: int) -> tuple[Tensor, Tensor]:
        """Features [T, D] → (x̂ [T, D], bits of each feature [T])."""
        y = self.quantise(x, quality)
        q, bits = self.code(y, quality)
        return self.dequantise(q, quality), bits

    def code(self, y: Tensor, quality: int) -> tuple[Tensor, Tensor]:
        """Components in steps [T, M] → (what is coded of them [T, M], bits of each feature [T]).

        Quantised as the encoder does: z from the nearest steps, then each component one step towards its
        prediction where that saves bits at ``BIT_PRICE``. Gradients pass the rounding straight.

        Of the rounded values: uniform noise instead overrates components that are nearly always 0, twofold here.
        """
        nearest = ste_round(y)
        z = ste_round(self.hyper_symbols(nearest, quality))
        mean, index = self.h_s(z, quality)
        scale = scale_of(index)
        with torch.no_grad():
            shorter = nearest - torch.sign(nearest - mean.round())
            saved = (self._likelihood(shorter, scale, mean) / self._likelihood(nearest, scale, mean)).log2()
            worth = (y - shorter).square() - (y - nearest).square() < BIT_PRICE * saved
            chosen = torch.where(worth, shorter, nearest)
        q = y + (chosen - y).detach()
        z_likelihoods, _, _ = self.densities()[quality]._likelihood(z.T[:, None])
        y_bits, z_bits = (
            -bound(p, 1e-9).log2().sum(-1) for p in (self._likelihood(q, scale, mean), z_likelihoods[:, 0].T)
        )
        return q, y_bits + z_bits

    def _likelihood(self, q: Tensor, scale: Tensor, mean: Tensor) -> Tensor:
        return cast(Tensor, self.gaussian_conditional._likelihood(q, scale, means=mean)).clamp(min=1e-12)

    def aux_loss(self) -> Tensor:
        """Compressai's auxiliary loss: keeps the bottleneck's quantiles at its tails."""
        return torch.stack([F.relu(one.loss()) for one in self.densities()]).sum()

    def densities(self) -> list[EntropyBottleneck]:
        """Of z, one a quality."""
        return list(self.entropy_bottlenecks)
