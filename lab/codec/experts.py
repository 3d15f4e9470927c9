"""How many experts, and who chooses: a trial on the shipped transform, at one quality, bits alone.

An expert is an ``h_s`` of its own; its index is coded. Chosen either by a router, trained as TOFC has it (a soft
mixture with a balance loss, the best at run time), or by trying all and keeping the cheapest. Promises that all
variants see the same features, steps and batches; leaves the transform as it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.codec.compressai_parts import EntropyBottleneck, GaussianConditional
from lab.codec.follow import pool
from lab.codec.model import SCALE_MIN, HyperSynthesis, bound, scale_of, ste_round
from lab.nano.features import Cached
from shared.codec.codec import Codec

Chooser = Literal["router", "try all"]
#: experts, chooser, hyper symbols a feature
VARIANTS: tuple[tuple[int, Chooser, int], ...] = (
    (1, "try all", 3),
    (4, "try all", 3),
    (16, "try all", 3),
    (16, "router", 3),
    (4, "router", 3),
    (16, "try all", 1),
)
BALANCE = 0.02


class Trial(nn.Module):
    """Entropy model of whole steps q [T, M] with experts."""

    def __init__(self, components: int, hyper: int, hidden: int, experts: int, chooser: Chooser) -> None:
        super().__init__()
        self.chooser = chooser
        self.h_a = nn.Sequential(nn.Linear(components, hidden), nn.ReLU(), nn.Linear(hidden, hyper))
        self.experts = nn.ModuleList(HyperSynthesis(hyper, hidden, components, 1) for _ in range(experts))
        self.router = nn.Linear(components, experts)
        self.prior = nn.Parameter(torch.zeros(experts))
        self.entropy_bottleneck = EntropyBottleneck(hyper)
        self.gaussian_conditional = GaussianConditional(None, scale_bound=SCALE_MIN)

    def forward(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Whole steps → (what training minimises, bits as coded), each the mean of a feature."""
        z = ste_round(self.h_a(q).clamp(-7, 7))
        z_likelihoods, _, _ = self.entropy_bottleneck._likelihood(z.T[:, None])
        z_bits = -bound(z_likelihoods[:, 0].T, 1e-9).log2().sum(-1)
        told = [expert(z, 0) for expert in self.experts]
        likelihoods = [self.gaussian_conditional._likelihood(q, scale_of(index), means=mean) for mean, index in told]
        y_bits = torch.stack([-bound(p, 1e-9).log2().sum(-1) for p in likelihoods], dim=-1)  # [T, E]
        index_bits = -self.prior.log_softmax(-1) / np.log(2)
        if self.chooser == "try all":
            every = y_bits + index_bits
            coded = z_bits + every.min(-1).values
            # At first everybody learns a little from everything, so that nobody is left behind.
            trained = z_bits - torch.logsumexp(-every * np.log(2), -1) / np.log(2)
            return trained.mean(), coded.mean()
        scores = self.router(q / 4)
        share = scores.softmax(-1)
        chosen = F.one_hot(scores.argmax(-1), len(told)).float()
        usage = share.mean(0)
        trained = z_bits + (share * (y_bits + index_bits)).sum(-1)
        balance = len(told) * usage.square().sum() - 1
        return trained.mean() * (1 + BALANCE * balance), (z_bits + (chosen * (y_bits + index_bits)).sum(-1)).mean()


def trial(
    codec: Codec,
    world: list[Cached],
    validation: list[Cached],
    out: Path,
    *,
    quality: int,
    steps: int = 2000,
    seed: int = 0,
    log: Any = print,
) -> list[dict[str, Any]]:
    """Bits a feature on validation pictures for each of ``VARIANTS``; written to ``out`` (JSON) as they come."""
    found: list[dict[str, Any]] = json.loads(out.read_text()) if out.exists() else []

    def symbols(pictures: list[Cached]) -> Tensor:
        return torch.from_numpy(codec.symbols(pool(pictures, seed).numpy(), quality).q.astype(np.float32))

    seen, unseen = symbols(world), symbols(validation)
    for experts, chooser, hyper in VARIANTS[len(found) :]:
        torch.manual_seed(seed)
        model = Trial(codec.config.components, hyper, codec.config.hyper_hidden, experts, chooser)
        with torch.no_grad():
            for one in model.experts:  # scales begin with the components' own
                assert isinstance(one, HyperSynthesis)
                spread = seen.std(0).clamp(0.15)
                one.b2[0, codec.config.components :] = 4.1 * torch.log(spread / SCALE_MIN)
        optimiser = torch.optim.Adam([p for n, p in model.named_parameters() if not n.endswith("quantiles")])
        generator = torch.Generator().manual_seed(seed)
        for done in range(steps):
            optimiser.param_groups[0]["lr"] = 1.5e-3 * (1 - done / steps)
            loss, _ = model(seen[torch.randint(len(seen), (1024,), generator=generator)])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimiser.step()
        with torch.inference_mode():
            bits = float(model(unseen)[1])
        found.append(
            {"experts": experts, "chooser": chooser, "hyper": hyper, "quality": quality, "bits": round(bits, 3)}
        )
        log(found[-1], flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n")
    return found
