"""An experiment: hyperpriors with experts, as TOFC was published, against the context model, on nano's transform.

Each expert has its own `h_s`, and its index is coded. It is chosen either by a router, trained as in the paper (a soft
mixture with a balance loss; the best one at run time), or by trying all and keeping the cheapest. Promises that all
variants see the same features, steps and batches. Only bits are measured; the transform is not trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tofc.codec.codec import Codec
from tofc.codec.context.config import ContextConfig
from tofc_lab.codec.compressai_parts import EntropyBottleneck, GaussianConditional
from tofc_lab.codec.model import SCALE_MIN, SCALES, CodecModel, bound, index_of, scale_of, ste_round
from tofc_lab.codec.places import Places
from tofc_lab.nano.expert_trials import descend, symbols, trials
from tofc_lab.nano.features import CachedPicture
from tofc_lab.progress import Log, print_now

Choice = Literal["context", "router", "try all"]
#: number of experts, how one is chosen, hyper symbols per feature
VARIANTS: tuple[tuple[int, Choice, int], ...] = (
    (1, "try all", 3),
    (4, "try all", 3),
    (16, "try all", 3),
    (16, "router", 3),
    (4, "router", 3),
    (16, "try all", 1),
    (1, "context", 0),
)
BALANCE = 0.02
HIDDEN = 48  # of the hyperpriors


class HyperSynthesis(nn.Module):
    """h_s: z [T, Z] → (mean in steps, scale index), each [T, M]."""

    def __init__(self, hyper: int, components: int) -> None:
        super().__init__()
        self.components = components
        self.w1 = nn.Parameter(torch.randn(HIDDEN, hyper) * 2.4)
        self.b1 = nn.Parameter(torch.rand(HIDDEN) * 8)
        self.w2 = nn.Parameter(torch.randn(2 * components, HIDDEN) * 0.0025)
        self.b2 = nn.Parameter(torch.cat([torch.zeros(components), torch.full((components,), SCALES / 2)]))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        h = (z @ self.w1.T + self.b1).clamp(0, 255)
        mean, scale = (h @ self.w2.T + self.b2).split(self.components, dim=-1)
        return mean, scale.clamp(0, SCALES - 1)


class ExpertsModel(nn.Module):
    """Entropy model of whole steps q [T, M] with experts."""

    def __init__(self, spread: Tensor, hyper: int, experts: int, choice: Choice) -> None:
        super().__init__()
        self.choice, components = choice, len(spread)
        self.h_a = nn.Sequential(nn.Linear(components, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, hyper))
        self.experts = nn.ModuleList(HyperSynthesis(hyper, components) for _ in range(experts))
        self.router = nn.Linear(components, experts)
        self.prior = nn.Parameter(torch.zeros(experts))
        self.entropy_bottleneck = EntropyBottleneck(hyper)
        self.gaussian_conditional = GaussianConditional(None, scale_bound=SCALE_MIN)
        with torch.no_grad():
            for one in self.experts:  # the initial scales are those of the components
                assert isinstance(one, HyperSynthesis)
                one.b2[components:] = index_of(spread)

    def forward(self, q: Tensor, _: Places) -> tuple[Tensor, Tensor]:
        """Return (loss, bits as coded) of whole steps, both as means per feature."""
        z = ste_round(self.h_a(q).clamp(-7, 7))
        z_likelihoods, _, _ = self.entropy_bottleneck._likelihood(z.T[:, None])
        z_bits = -bound(z_likelihoods[:, 0].T, 1e-9).log2().sum(-1)
        predicted = [expert(z) for expert in self.experts]
        likelihoods = [
            self.gaussian_conditional._likelihood(q, scale_of(index), means=mean) for mean, index in predicted
        ]
        y_bits = torch.stack([-bound(p, 1e-9).log2().sum(-1) for p in likelihoods], dim=-1)  # [T, E]
        index_bits = -self.prior.log_softmax(-1) / np.log(2)
        if self.choice == "try all":
            every = y_bits + index_bits
            coded = z_bits + every.min(-1).values
            # A soft minimum, so that every expert gets a gradient from every feature.
            trained = z_bits - torch.logsumexp(-every * np.log(2), -1) / np.log(2)
            return trained.mean(), coded.mean()
        scores = self.router(q / 4)
        share = scores.softmax(-1)
        chosen = F.one_hot(scores.argmax(-1), len(predicted)).float()
        usage = share.mean(0)
        trained = z_bits + (share * (y_bits + index_bits)).sum(-1)
        balance = len(predicted) * usage.square().sum() - 1
        return trained.mean() * (1 + BALANCE * balance), (z_bits + (chosen * (y_bits + index_bits)).sum(-1)).mean()


class ContextOnly(nn.Module):
    """The codec's context model as an entropy model of whole steps q [T, M], at one quality."""

    def __init__(self, spread: Tensor, hidden: int) -> None:
        super().__init__()
        self.model = CodecModel(dim=len(spread), components=len(spread), hidden=hidden, qualities=1)
        with torch.no_grad():
            self.model.context.out_b[0, 1] = index_of(spread)

    def forward(self, q: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """Return (loss, bits as coded), which are the same here."""
        bits = self.model.code(q, 0, places, price=0.0)[1].mean()
        return bits, bits


def compare(
    codec: Codec,
    world: list[CachedPicture],
    validation: list[CachedPicture],
    out: Path,
    *,
    codec_id: str,
    quality: int,
    steps: int = 2000,
    seed: int = 0,
    log: Log = print_now,
) -> list[dict[str, Any]]:
    """Measure bits per feature on validation pictures for each of `VARIANTS`; write `out` (JSON) after each.

    A file of the same codec, quality, steps and seed is resumed; any other is replaced.
    """
    basis = {"codec_id": codec_id, "quality": quality, "steps": steps, "seed": seed}
    training, held_out = (symbols(codec, pictures, quality, seed, 0.5) for pictures in (world, validation))
    spread = training.features.std(0)

    def measure(variant: tuple[int, Choice, int]) -> dict[str, Any]:
        experts, choice, hyper = variant
        torch.manual_seed(seed)
        model: nn.Module
        if choice == "context":
            assert isinstance(codec.config, ContextConfig)
            model = ContextOnly(spread, codec.config.context_hidden)
        else:
            model = ExpertsModel(spread, hyper, experts, choice)
        trained = [one for name, one in model.named_parameters() if not name.endswith("quantiles")]
        generator = torch.Generator().manual_seed(seed)
        descend(trained, lambda: model(*training.draw(generator, 1024))[0], steps=steps, rate=1.5e-3, clip=10.0)
        with torch.inference_mode():
            bits = float(model.eval()(*held_out.all())[1])
        return {"experts": experts, "chooser": choice, "hyper": hyper, "bits": round(bits, 3)}

    return trials(VARIANTS, out, basis, measure, log)
