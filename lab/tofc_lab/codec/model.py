"""The codec as a differentiable model, for training.

    x [n,D] ─ g_a ─ y [n,M] ─ ÷step, round ─ q ─ ×step ─ g_s ─ x̂ [n,D]
                                └ context ─ mean, scale ─ bits of q

Promises straight-through gradients at the rounding of q. The conditional distribution is compressai's. Leaves rounding
the weights to the integers of the runtime to `context` and `export`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from tofc.codec.context.context_model import STAGES
from tofc.codec.context.weights import ContextWeights
from tofc_lab.codec.compressai_parts import GaussianConditional
from tofc_lab.codec.context import ContextModel
from tofc_lab.codec.places import Places
from tofc_lab.codec.sensitivity import in_float64

SCALES = 20  # of the conditional distribution, geometric
SCALE_MIN, SCALE_MAX = 0.12, 12.0  # in quantisation steps
LOG_RATIO = math.log(SCALE_MAX / SCALE_MIN) / (SCALES - 1)  # of the logarithms of two scales that follow each other
#: squared steps per bit; ln 2 / 6 = 0.12 in theory, where steps are short (distortion falls by 2 ln 2 per bit)
BIT_PRICE = 0.065
#: sum of the entropies of single components, divided by their bits under the context model; a rough estimate
ALONE = 2.5


def scale_of(index: Tensor) -> Tensor:
    """Return the scale, in quantisation steps, of a scale index, which may be fractional."""
    return SCALE_MIN * torch.exp(index * LOG_RATIO)


def index_of(scale: Tensor) -> Tensor:
    """Return the scale index of a scale in quantisation steps, inside the range of the tables."""
    return torch.log(scale.clamp(SCALE_MIN, SCALE_MAX) / SCALE_MIN) / LOG_RATIO


def ste_round(x: Tensor) -> Tensor:
    """Round, with the gradient of the identity."""
    return x + (x.round() - x).detach()


def bound(x: Tensor, least: float) -> Tensor:
    """Clamp to at least `least`, but pass the gradient, so that a likelihood below it can grow again."""
    return x + (x.clamp(min=least) - x).detach()


class CodecModel(nn.Module):
    """Transform, quantiser and context model of all qualities, with one set of weights.

    Each quality has its own step sizes (the gain vectors of variable-rate compression, Cui et al., 2021) and its own
    biases in the context model.
    """

    mean: Tensor
    spread: Tensor
    edges: Tensor  # [3, 1, 1], see `_bits_saved`

    def __init__(self, *, dim: int, components: int, hidden: int, qualities: int) -> None:
        super().__init__()
        self.components, self.qualities = components, qualities
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(()))
        self.analysis = nn.Parameter(torch.zeros(components, dim))  # acts on (x − mean) / spread
        self.synthesis = nn.Parameter(torch.zeros(dim, components))
        self.log_step = nn.Parameter(torch.zeros(qualities, components))
        self.context = ContextModel(components, hidden, qualities, SCALES / 2)
        self.gaussian_conditional = GaussianConditional(None, scale_bound=SCALE_MIN)
        self.register_buffer("edges", torch.tensor([-1.5, -0.5, 0.5])[:, None, None], persistent=False)

    @torch.no_grad()
    def start_from(self, x: Tensor, measure: Tensor, bits: Sequence[float]) -> None:
        """Initialise with the principal components of features x [T, D], their errors weighed by `measure` [D, D].

        The components are those of `measure @ x`, and the synthesis is the least-squares estimate of x
        from them. All steps of a quality are equal, and such that a feature costs about `bits` [Q].
        """
        self.mean.copy_(x.mean(0))
        self.spread.copy_((x - self.mean).std())
        centred = in_float64((x - self.mean) / self.spread)
        covariance = centred.T @ centred / len(x)
        w = in_float64(measure)
        values, vectors = torch.linalg.eigh(w @ covariance @ w.T)
        u, power = vectors[:, -self.components :].flip(1), values[-self.components :].flip(0)  # [D, M]
        unit = power[:24].mean().sqrt()
        self.analysis.copy_((u.T @ w) / unit)
        self.synthesis.copy_(covariance @ w.T @ u / power * unit)
        self.log_step.zero_()
        self.space_steps(x, bits)

    @torch.no_grad()
    def continue_from(self, weights: ContextWeights, x: Tensor, bits: Sequence[float]) -> None:
        """Initialise with another codec's transform, and its finest steps scaled so that x [T, D] costs `bits` [Q]."""
        assert weights.analysis is not None and weights.synthesis is not None
        device = self.mean.device
        self.mean.copy_(torch.tensor(weights.mean))
        self.spread.copy_((x - self.mean).std())
        self.analysis.copy_(torch.tensor(weights.analysis, device=device) * self.spread)
        self.synthesis.copy_(torch.tensor(weights.synthesis, device=device) / self.spread)
        self.log_step.copy_(torch.tensor(weights.step[-1]).log())
        self.space_steps(x, bits)

    @torch.no_grad()
    def space_steps(self, x: Tensor, bits: Sequence[float]) -> None:
        """Set each quality's steps to the finest ones times a factor, so that features x [T, D] cost about `bits`.

        Sets the context model's initial scales to match. Costs are estimated: the sum of the entropies of single
        rounded components, divided by `ALONE`.
        """
        finest = self.log_step[-1].clone()
        for quality, wanted in enumerate(bits):
            self.log_step[quality] = finest
            low, high = -4.0, 8.0  # of the logarithm
            for _ in range(24):
                middle = (low + high) / 2
                q = (self.quantise(x, quality) / math.exp(middle)).round().long()
                counts = [in_float64(torch.unique(column, return_counts=True)[1]) / len(q) for column in q.T]
                cost = sum(float(-(p * p.log2()).sum()) for p in counts) / ALONE
                low, high = (middle, high) if cost > wanted else (low, middle)
            self.log_step[quality] += (low + high) / 2
            self.context.out_b[quality, 1] = index_of(self.quantise(x, quality).std(0))

    def project(self, x: Tensor) -> Tensor:
        """Return the components [T, M] of features [T, D]."""
        return ((x - self.mean) / self.spread) @ self.analysis.T

    def quantise(self, x: Tensor, quality: int) -> Tensor:
        """Return the components of features [T, D] in quantisation steps [T, M], not yet rounded."""
        return self.project(x) / self.log_step[quality].exp()

    def dequantise(self, q: Tensor, quality: int) -> Tensor:
        """Return the features [T, D] of quantised components [T, M]."""
        return (q * self.log_step[quality].exp()) @ self.synthesis.T * self.spread + self.mean

    def forward(self, x: Tensor, quality: int, places: Places) -> tuple[Tensor, Tensor]:
        """Return (x̂ [T, D], bits of each feature [T]) of features [T, D]."""
        y = self.quantise(x, quality)
        q, bits = self.code(y, quality, places)
        return self.dequantise(q, quality), bits

    def code(self, y: Tensor, quality: int, places: Places, price: float = BIT_PRICE) -> tuple[Tensor, Tensor]:
        """Quantise components in steps [T, M]; return (whole steps [T, M], bits of each feature [T]).

        Gradients pass straight through the rounding. Whole steps are chosen slice by slice, as each depends on those
        before it; then all predictions are made at once, with gradients. Most kernels and their backward passes are
        then few and large.
        """
        dropped = self.context.dropped(len(y))
        q = y + (self.choose(y, quality, places, dropped, price) - y).detach()
        return q, self.bits(q, quality, places, dropped)

    def bits(self, q: Tensor, quality: int, places: Places, dropped: Tensor) -> Tensor:
        """Return the bits of each feature [T] of whole steps [T, M].

        Bits are those of rounded values: uniform noise instead of rounding doubles the estimate for components that
        are nearly always 0.
        """
        mean, scale = self.context.expect(q, places, quality, dropped)
        scale = scale_of(scale.clamp(0, SCALES - 1))
        likelihood = cast(Tensor, self.gaussian_conditional._likelihood(q, scale, means=mean)).clamp(min=1e-12)
        return -bound(likelihood, 1e-9).log2().sum(1)

    @torch.no_grad()
    def choose(
        self, y: Tensor, quality: Tensor | int, places: Places, dropped: Tensor, price: float = BIT_PRICE
    ) -> Tensor:
        """Return whole steps [T, M] of components in steps, at one quality or at that of each feature [T].

        Quantises as the encoder does, in coding order: each component moves one step towards its prediction where the
        bits saved, at `price` squared steps each, outweigh the error.
        """
        context, nearest = self.context, y.round()
        if not price:
            return nearest
        q, around = torch.zeros_like(y), None
        one = y.new_ones(()) / price
        excess = 2 / price * (y - nearest)
        for stage in range(STAGES):
            rows = (places.stage == stage).nonzero()[:, 0]
            if stage:  # features that are not coded yet are zeros here, and do not count as neighbours
                around = context.around(context.embed(q, quality, dropped), places, rows)
            biases = context.biases(quality[rows] if isinstance(quality, Tensor) else quality, stage, around)
            whole, extra, chosen = nearest[rows], excess[rows], q[rows]
            for index, (first, last) in enumerate(context.spans):
                mean, scale = context.expect_slice(index, chosen, biases)
                part = whole[:, first:last]
                step = (part - mean.round()).sgn()
                saved = self._bits_saved((part - mean) * step, scale)
                error = torch.addcmul(one, extra[:, first:last], step)  # that it adds, in bits at this price
                torch.sub(part, step * (error < saved), out=chosen[:, first:last])
            q[rows] = chosen
        return q

    def _bits_saved(self, distance: Tensor, scale: Tensor) -> Tensor:
        """Return the bits saved by a residual that is a step shorter than `distance`, by the index of its scale.

        Three edges bound the two intervals. All are on one side of the mean, but for half a step, so that the
        complementary error function keeps its precision in the tail.
        """
        narrow = torch.rsub(scale.clamp(0, SCALES - 1), math.log(math.sqrt(0.5) / SCALE_MIN), alpha=LOG_RATIO).exp()
        beyond = torch.erfc((distance + self.edges) * narrow)  # twice the mass
        bits: Tensor = -(beyond[:-1] - beyond[1:]).clamp(min=2e-12).log2()
        return bits[1] - bits[0]
