"""An experiment: experts on top of the index codec's context model, on nano.

An expert has layers of its own after the first one, and its own biases of indices. The expert of a feature is chosen

- by trying all and keeping the cheapest; its number is coded;
- by a router that sees the feature, trained as in the TOFC paper (soft mixture, balance loss); its number is coded;
- from what is decoded already: all experts' probabilities are mixed with weights that the context gives, which costs
  no number.

All variants start from the trained context model and see the same indices, steps and batches. Promises that bits are
those of held-out pictures; the indices are those that the shipped encoder chose, which favours one expert.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tofc.codec.codec import Codec
from tofc.codec.index.weights import IndexWeights
from tofc_lab.codec.index.grids import Grids
from tofc_lab.codec.index.model import LN2, MAX_ACTIVATION, IndexModel, bits_of
from tofc_lab.nano.expert_trials import descend, symbols, trials
from tofc_lab.nano.features import CachedPicture
from tofc_lab.progress import Log, print_now

Choice = Literal["one", "try all", "router", "decoded"]
VARIANTS: tuple[tuple[int, Choice], ...] = (
    (1, "one"),
    (4, "try all"),
    (4, "router"),
    (4, "decoded"),
    (16, "try all"),
    (16, "router"),
    (16, "decoded"),
)
BALANCE = 0.02
BATCH = 12  # views


class IndexExperts(nn.Module):
    """The trained context model with E experts of all but its first layer."""

    def __init__(self, trained: IndexModel, experts: int, choice: Choice) -> None:
        super().__init__()
        self.model, self.choice, self.count = trained, choice, experts

        def each(value: Tensor, noise: float) -> nn.Parameter:
            """Return E copies of a trained parameter, which differ a little."""
            return nn.Parameter(value.detach() + noise * (experts > 1) * torch.randn(experts, *value.shape))

        self.mid_w, self.mid_b = each(trained.mid_w, 0.02), each(trained.mid_b, 0.1)
        self.out_w, self.out_b = each(trained.out_w, 0.02), each(trained.out_b, 0.02)
        self.code_b = each(trained.code_b, 0.02)
        self.router = nn.Linear(trained.codewords.shape[1], experts)
        self.gate = nn.Linear(trained.mid_w.shape[-1], experts)
        self.prior = nn.Parameter(torch.zeros(experts))

    def forward(self, side: int, index: Tensor, present: Tensor, quality: int) -> tuple[Tensor, Tensor]:
        """Return (loss, bits as coded) of the indices [V, G², S], both as means over the features present."""
        qualities = torch.full((len(index),), quality)
        around, own = self.model.contexts(side, index, present, qualities)
        taken = index[present]
        bits = torch.stack([self._bits(e, around, own, taken, quality) for e in range(self.count)], dim=-1)  # [T, E]
        if self.choice == "decoded":
            hidden = self.model.first_layer(0, around, None, quality)
            mixed = -torch.logsumexp(self.gate(hidden).log_softmax(-1) - bits * LN2, -1) / LN2
            return mixed.mean(), mixed.mean()
        every = bits - self.prior.log_softmax(-1) / LN2
        if self.choice != "router":
            return (-torch.logsumexp(-every * LN2, -1) / LN2).mean(), every.min(-1).values.mean()
        firsts = [first for first, _ in self.model.spans]
        y = sum(self.model.codewords[first + taken[:, s]] for s, first in enumerate(firsts))
        scores = self.router(y / self.model.codewords.std())
        share = scores.softmax(-1)
        chosen = F.one_hot(scores.argmax(-1), self.count).float()
        balance = self.count * share.mean(0).square().sum() - 1
        loss = (share * every).sum(-1).mean() * (1 + BALANCE * balance)
        return loss, (chosen * every).sum(-1).mean()

    def _bits(self, e: int, around: Tensor, own: list[Tensor | None], taken: Tensor, quality: int) -> Tensor:
        """Return the bits [T] of all stages' indices under expert `e`."""
        total = torch.zeros(len(around))
        for stage, ((first, last), row) in enumerate(zip(self.model.spans, self.model.rows(), strict=True)):
            h = self.model.first_layer(stage, around, own[stage], quality)
            h = h @ self.mid_w[e, stage].T + self.mid_b[e, quality, stage]
            query = h.clamp(0, MAX_ACTIVATION) @ self.out_w[e, stage].T + self.out_b[e, quality, stage]
            total = total + bits_of(query @ row.T + self.code_b[e, quality, first:last], taken[:, stage])
        return total


def indices(codec: Codec, pictures: list[CachedPicture], quality: int, seed: int) -> list[Grids]:
    """Return the indices that the codec chooses, as the components of grids."""
    return Grids.of(symbols(codec, pictures, quality, seed, 0.25), lambda q: q)


def compare(
    weights: IndexWeights,
    training: list[CachedPicture],
    validation: list[CachedPicture],
    out: Path,
    *,
    codec_id: str,
    quality: int,
    steps: int = 600,
    seed: int = 0,
    log: Log = print_now,
) -> list[dict[str, Any]]:
    """Measure bits per feature on validation pictures for each of `VARIANTS`; write `out` (JSON) after each.

    A file of the same codec, quality, steps and seed is resumed; any other is replaced.
    """
    basis = {"codec_id": codec_id, "quality": quality, "steps": steps, "seed": seed, "pictures": len(training)}
    codec = Codec(weights)
    shown, held_out = (indices(codec, pictures, quality, seed) for pictures in (training, validation))
    sizes = torch.tensor([float(one.present.sum()) for one in shown])

    def measure(variant: tuple[int, Choice]) -> dict[str, Any]:
        experts, choice = variant
        torch.manual_seed(seed)
        model = IndexExperts(IndexModel.of(weights), experts, choice)
        generator = torch.Generator().manual_seed(seed)

        def loss() -> Tensor:
            grids = shown[int(torch.multinomial(sizes, 1, generator=generator))]
            rows = torch.randint(len(grids.y), (BATCH,), generator=generator)
            found: Tensor = model(grids.side, grids.y[rows].long(), grids.present[rows], quality)[0]
            return found

        descend(model.parameters(), loss, steps=steps, rate=1e-3, clip=5.0)
        bits = _measured(model.eval(), held_out, quality)
        return {"experts": experts, "chooser": choice, "bits": round(bits, 3)}

    return trials(VARIANTS, out, basis, measure, log)


@torch.inference_mode()
def _measured(model: IndexExperts, views: list[Grids], quality: int) -> float:
    """Return the mean bits of a feature, as coded."""
    total = count = 0.0
    for grids in views:
        for rows in torch.arange(len(grids.y)).split(64):
            present = grids.present[rows]
            total += float(model(grids.side, grids.y[rows].long(), present, quality)[1]) * float(present.sum())
            count += float(present.sum())
    return total / count
