"""TOFC as published (arXiv 2503.12926), the baseline: no transform, 16 experts chosen by a router.

    x [n,D] ─ ÷step, round ─ q ──────────────────────────┐
            └ h_a ─ z [n,D/16] ─ round ─ h_s of expert e ─ mean, scale ─ Laplace ─ bits of q
            └ router ─ e

Features are merged by DPC-KNN, and every number of a feature is coded. There is one model for each rate. It is trained
on the rate alone, with steps that come from how much answers depend on each number; the paper trains through the
decoder instead. The comparison favours it: its sizes are ideal bits and two bytes of header, its merging is ours. The
expert's index is counted.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tofc.codec.merge import merge
from tofc_lab import resume
from tofc_lab.codec.compressai_parts import EntropyBottleneck
from tofc_lab.codec.model import bound, ste_round
from tofc_lab.nano.answerer import Reduce
from tofc_lab.rate_distortion.simple import HEADER, place_bits

EXPERTS = 16
BALANCE = 0.02  # weight of the load-balancing loss: squared mean share of each expert


def laplace_bits(q: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return the bits of whole numbers under Laplace distributions, integrated over whole steps."""
    rate = 1 / scale
    far, half = (q - mean).abs() * rate, 0.5 * rate
    tail = torch.exp(half - far) * -torch.expm1(-2 * half) / 2
    middle = 1 - torch.exp(-half) * torch.cosh(torch.minimum(far, half))
    return -bound(torch.where(far < half, middle, tail), 1e-9).log2()


class Published(nn.Module):
    """The entropy model of one rate for features with `step` [D]."""

    step: Tensor
    mean: Tensor
    usage: Tensor

    def __init__(self, mean: Tensor, step: Tensor) -> None:
        super().__init__()
        dim = len(step)
        hyper, hidden = dim // 16, dim // 4
        self.register_buffer("mean", mean)
        self.register_buffer("step", step)
        self.h_a = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hyper))
        self.h_s = nn.Sequential(nn.Linear(hyper, hidden), nn.ReLU())
        self.experts = nn.Linear(hidden, EXPERTS * 2 * dim)
        self.router = nn.Linear(dim, EXPERTS)
        self.entropy_bottleneck = EntropyBottleneck(hyper)
        self.register_buffer("usage", torch.full((EXPERTS,), 1 / EXPERTS))  # probability of each expert's index

    def quantise(self, x: Tensor) -> Tensor:
        """Return features [T, D] in whole steps from the mean feature."""
        return ((x - self.mean) / self.step).round()

    def parts(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return bits of z [T], bits of q under each expert [T, E] and the router's scores [T, E]."""
        scaled = q / 8
        z = ste_round(cast(Tensor, self.h_a(scaled)))
        likelihoods, _, _ = self.entropy_bottleneck._likelihood(z.T[:, None])
        z_bits = -bound(likelihoods[:, 0].T, 1e-9).log2().sum(-1)
        mean, scale = self.experts(self.h_s(z)).unflatten(-1, (EXPERTS, 2, -1)).unbind(-2)
        q_bits = laplace_bits(q[:, None], mean, nn.functional.softplus(scale) + 0.02).sum(-1)
        return z_bits, q_bits, self.router(scaled)

    def loss(self, x: Tensor) -> Tensor:
        """Return the bits per feature under a soft mixture of experts, with the balance loss."""
        z_bits, q_bits, scores = self.parts(self.quantise(x))
        share = scores.softmax(-1)
        with torch.no_grad():
            self.usage.lerp_(nn.functional.one_hot(scores.argmax(-1), EXPERTS).float().mean(0), 0.02)
        balance = EXPERTS * share.mean(0).square().sum() - 1
        return z_bits.mean() + (share * q_bits).sum(-1).mean() * (1 + BALANCE * balance)

    def reduce(self, n: int) -> Reduce:
        """Return a function that merges a view to at most n features and codes them."""
        usage = self.usage.clamp(min=1e-3)
        expert_bits = -(usage / usage.sum()).log2()

        @torch.inference_mode()
        def reduce(view: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64], float]:
            merged = merge(view, min(n, len(view)))
            q = self.quantise(torch.from_numpy(merged.centroids))
            z_bits, q_bits, scores = self.parts(q)
            chosen = scores.argmax(-1)
            bits = z_bits + q_bits.gather(1, chosen[:, None])[:, 0] + expert_bits[chosen]
            size = HEADER + (float(bits.sum()) + place_bits(len(q), len(view))) / 8
            return (q * self.step + self.mean).numpy(), merged.centres.astype(np.int64), size

        return reduce


def train(
    features: NDArray[np.float32],
    worth: NDArray[np.float64],
    step: float,
    out: Path,
    *,
    steps: int = 800,
    batch: int = 128,
    seed: int = 0,
) -> Published:
    """Train the model of one rate on features [T, D], or load it from `out`.

    A number's step is `step` divided by the root of its `worth` [D] (its sensitivity: the diagonal of the
    decoder's Fisher information), as reverse water-filling has it; `step` is in units of the features' spread.
    """
    x = torch.from_numpy(features)
    root = np.sqrt(worth + 0.05 * worth.mean())
    lengths = step * float(x.std()) * root.mean() / root
    torch.manual_seed(seed)
    model = Published(x.mean(0), torch.from_numpy(lengths.astype(np.float32)))
    if (state := resume.load(out)) is not None:
        model.load_state_dict(state["model"])
        return model.eval()
    deviation = model.quantise(x).std(0).clamp(min=0.05)  # initialise with the distribution of each number
    with torch.no_grad():
        bias = model.experts.bias.view(EXPERTS, 2, -1)
        bias[:, 0] = 0
        bias[:, 1] = (torch.expm1(deviation / math.sqrt(2)) + 1e-4).log()
        model.experts.weight.mul_(0.1)
    optimiser = torch.optim.Adam([p for n, p in model.named_parameters() if not n.endswith("quantiles")])
    generator = torch.Generator().manual_seed(seed)
    for done in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1.0, 2 * (1 - done / steps))
        loss = model.loss(x[torch.randint(len(x), (batch,), generator=generator)])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
    resume.save(out, {"model": model.state_dict()})
    return model.eval()
