"""TOFC's entropy model as published (arXiv 2503.12926), during training: one model, for one λ.

    x [n,D] ─ (analysis) ─ y [n,M] ─ ÷step, round ─ q ──────────────────────┐            ┌─ ×step ─ (synthesis) ─ x̂
                             ├ h_a ─ z [n,Z] ─ round ─ h_s of expert e ─ mean, scale ─ Laplace ─ bits of q
                             └ router ─ e

As published there is no transform: M = D, and a step for each number of a feature. With the transform of another codec
it stays as it is. Training mixes all experts softly, with a loss that balances how often each is used; the codec uses
the best one. Promises straight-through gradients at the rounding of q and z. Leaves the integers to
`selective_hyperprior_export`.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tofc.codec.integer_net import ACTIVATION_BITS, ACTIVATION_MAX
from tofc.codec.selective_hyperprior.hyper_synthesis import OUT_WEIGHT_BITS
from tofc_lab.codec.compressai_parts import EntropyBottleneck
from tofc_lab.codec.model import bound, ste_round

SCALES = 24  # of the conditional distribution, geometric
SCALE_MIN, SCALE_MAX = 0.04, 8.0  # in quantisation steps
HYPER_RANGE = 15  # of the numbers of ẑ
BALANCE = 0.05  # weight of the load-balancing loss: squared mean share of each expert
_DAMPING = 1 / 8  # of h_a's and the router's inputs
_OUT_ONE = 1 << OUT_WEIGHT_BITS


def scale_of(index: Tensor) -> Tensor:
    """Return the scale, in quantisation steps, of a scale index, which may be fractional."""
    return SCALE_MIN * torch.exp(index * (math.log(SCALE_MAX / SCALE_MIN) / (SCALES - 1)))


def index_of(scale: Tensor) -> Tensor:
    """Return the scale index of a scale in quantisation steps, inside the range of the tables."""
    return torch.log(scale.clamp(SCALE_MIN, SCALE_MAX) / SCALE_MIN) * (SCALES - 1) / math.log(SCALE_MAX / SCALE_MIN)


def laplace_bits(q: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return the bits of whole numbers under Laplace distributions, integrated over whole steps."""
    rate = 1 / scale
    far, half = (q - mean).abs() * rate, 0.5 * rate
    tail = torch.exp(half - far) * -torch.expm1(-2 * half) / 2
    middle = 1 - torch.exp(-half) * torch.cosh(torch.minimum(far, half))
    return -bound(torch.where(far < half, middle, tail), 1e-9).log2()


class SelectiveHyperprior(nn.Module):
    """Quantiser and entropy model of one λ, for components [T, M] of features [T, D]."""

    mean: Tensor
    usage: Tensor
    analysis: Tensor
    synthesis: Tensor

    def __init__(self, *, dim: int, components: int, hyper: int, hidden: int, analysis_hidden: int, experts: int):
        super().__init__()
        self.hyper, self.experts, self.transformed = hyper, experts, components < dim
        shape = (components, dim) if self.transformed else (0, 0)  # empty: no transform
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("analysis", torch.zeros(shape))
        self.register_buffer("synthesis", torch.zeros(shape).T.clone())
        self.log_step = nn.Parameter(torch.zeros(components))
        self.h_a = nn.Sequential(nn.Linear(components, analysis_hidden), nn.ReLU(), nn.Linear(analysis_hidden, hyper))
        self.router = nn.Linear(components, experts)
        self.h_s_w1 = nn.Parameter((torch.rand(experts, hidden, hyper) * 2 - 1) / hyper**0.5)
        self.h_s_b1 = nn.Parameter(torch.rand(experts, hidden))
        self.h_s_w2 = nn.Parameter((torch.rand(experts, 2, components, hidden) * 2 - 1) * 0.05)
        self.h_s_b2 = nn.Parameter(torch.zeros(experts, 2, components))
        self.entropy_bottleneck = EntropyBottleneck(hyper)
        self.register_buffer("usage", torch.full((experts,), 1 / experts))  # probability of each expert's index

    @torch.no_grad()
    def start_from(self, y: Tensor, step: Tensor) -> None:
        """Initialise with steps [M], and with the spread of components y [T, M] in those steps."""
        self.log_step.copy_(step.log())
        deviation = (y / step).round().std(0)
        self.h_s_b2[:, 1] = index_of(deviation / math.sqrt(2))

    @torch.no_grad()
    def continue_from(self, other: SelectiveHyperprior, ratio: float) -> None:
        """Initialise with a trained model whose steps become `ratio` times as long: its predictions stay the same."""
        self.load_state_dict(other.state_dict())
        self.log_step.add_(math.log(ratio))
        first = self.h_a[0]
        assert isinstance(first, nn.Linear)
        first.weight *= ratio
        self.router.weight *= ratio
        self.h_s_w2[:, 0] /= ratio
        self.h_s_b2[:, 0] /= ratio
        self.h_s_b2[:, 1] -= math.log(ratio) * (SCALES - 1) / math.log(SCALE_MAX / SCALE_MIN)

    def project(self, x: Tensor) -> Tensor:
        """Return the components [T, M] of features [T, D]."""
        return (x - self.mean) @ self.analysis.T if self.transformed else x - self.mean

    def dequantise(self, q: Tensor) -> Tensor:
        """Return the features [T, D] of whole steps [T, M]."""
        y = q * self.log_step.exp()
        x_hat: Tensor = self.mean + (y @ self.synthesis.T if self.transformed else y)
        return x_hat

    def expect(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return each expert's means, in steps, and scale indices [T, E, M] for ẑ [T, Z]."""
        hidden = torch.einsum("efz,tz->tef", self.h_s_w1, z) + self.h_s_b1
        hidden = hidden.clamp(0, ACTIVATION_MAX / (1 << ACTIVATION_BITS))
        # As rounded as they will be stored, so that training makes up for it.
        w2 = ste_round(self.h_s_w2 * _OUT_ONE).clamp(-_OUT_ONE, _OUT_ONE - 1) / _OUT_ONE
        mean, index = (torch.einsum("tef,ekmf->tekm", hidden, w2) + self.h_s_b2).unbind(2)
        return mean, index.clamp(0, SCALES - 1)

    def rate(self, y: Tensor) -> Tensor:
        """Return the bits of each feature [T] of components in steps [T, M], under a soft mixture of experts.

        The balance loss is a share of them.
        """
        q = ste_round(y)
        z = ste_round(cast(Tensor, self.h_a(y * _DAMPING)).clamp(-HYPER_RANGE, HYPER_RANGE))
        likelihoods, _, _ = self.entropy_bottleneck._likelihood(z.T[:, None])
        z_bits = -bound(likelihoods[:, 0].T, 1e-9).log2().sum(-1)
        mean, index = self.expect(z)
        q_bits = laplace_bits(q[:, None], mean, scale_of(index)).sum(-1)  # [T, E]
        scores = self.router(y * _DAMPING)
        share = scores.softmax(-1)
        if self.training:
            with torch.no_grad():
                self.usage.lerp_(nn.functional.one_hot(scores.argmax(-1), self.experts).float().mean(0), 0.02)
        else:
            share = nn.functional.one_hot(scores.argmax(-1), self.experts).float()
        usage = self.usage.clamp(min=1e-3)
        expert_bits = -(usage / usage.sum()).log2()
        balance = self.experts * share.mean(0).square().sum() - 1 if self.training else 0.0
        bits: Tensor = z_bits + (share * (q_bits + expert_bits)).sum(-1) * (1 + BALANCE * balance)
        return bits

    @torch.no_grad()
    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return h_a, router and step as `SelectiveHyperpriorWeights` has them, without its dimension of qualities."""
        first, _, second = self.h_a
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
        return {
            "step": self.log_step.exp().numpy(),
            "h_a_w1": (first.weight * _DAMPING).half().numpy(),
            "h_a_b1": first.bias.numpy(),
            "h_a_w2": second.weight.half().numpy(),
            "h_a_b2": second.bias.numpy(),
            "router_w": (self.router.weight * _DAMPING).half().numpy(),
            "router_b": self.router.bias.numpy(),
        }

    @torch.no_grad()
    def z_probabilities(self) -> np.ndarray[Any, Any]:
        """Return the probabilities [Z, 2 R_z + 1] of the numbers of ẑ."""
        numbers = torch.arange(-HYPER_RANGE, HYPER_RANGE + 1).float().expand(self.hyper, 1, -1)
        likelihoods, _, _ = self.entropy_bottleneck._likelihood(numbers)
        return cast("np.ndarray[Any, Any]", likelihoods[:, 0].double().numpy())
