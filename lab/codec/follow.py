"""The entropy model, kept close to the transform: cheap steps on the rate alone.

Nothing but the rate depends on it, so it needs no decoder and no questions. Trained only as often as the
transform it stayed far behind (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.codec.model import CodecModel
from lab.codec.team import Team
from lab.nano.answerer import merging, picture
from lab.nano.features import Cached


def pool(pictures: Sequence[Cached], seed: int, merged: float = 0.3) -> Tensor:
    """Features [T, D] of the pictures, a share of which are merged to a random number."""
    rng = np.random.default_rng([seed, 37])
    shares = [float(rng.uniform(0.15, 1.0)) if rng.random() < merged else 1.0 for _ in pictures]
    found = [picture(one, merging(share=share)).features for one, share in zip(pictures, shares, strict=True)]
    return torch.from_numpy(np.concatenate(found).astype(np.float32))


class Follower:
    """Trains ``h_a``, ``h_s`` and the entropy bottleneck of a model on features of ``seen`` [T, D]."""

    def __init__(self, model: CodecModel, seen: Tensor, seed: int, batch: int = 1024, team: Team | None = None) -> None:
        self.model, self.seen, self.batch, self.team = model, seen, batch, team or Team()
        self.generator = torch.Generator().manual_seed(seed)
        named = [*model.h_a.named_parameters(), *model.h_s.named_parameters(), ("h_a_bias", model.h_a_bias)]
        named += model.entropy_bottlenecks.named_parameters()
        self.parameters = [p for name, p in named if not name.endswith("quantiles")]
        self.optimiser = torch.optim.Adam(self.parameters)
        self.quantiles = torch.optim.Adam([one.quantiles for one in model.densities()], lr=1e-2)

    def step(self, rate: float, quality: int | None = None) -> float:
        """One step at a quality, a random one when none is given; returns the bits of a feature."""
        self.optimiser.param_groups[0]["lr"] = rate
        chosen = torch.randint(len(self.seen), (self.batch,), generator=self.generator)
        if quality is None:
            quality = int(torch.randint(self.model.qualities, (1,), generator=self.generator))
        with torch.no_grad():
            y = self.model.quantise(self.seen[chosen].to(self.model.mean.device), quality)
        bits = self.model.code(y, quality)[1].mean()
        self._descend(self.optimiser, bits)
        self._descend(self.quantiles, self.model.aux_loss())
        return bits.item()

    def _descend(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        optimiser.zero_grad()
        loss.backward()
        self.team.average(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, 10.0)
        optimiser.step()
        optimiser.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """For :meth:`load_state_dict`: optimisers and random state."""
        return {
            "optimiser": self.optimiser.state_dict(),
            "quantiles": self.quantiles.state_dict(),
            "random": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What :meth:`state_dict` gave."""
        self.optimiser.load_state_dict(state["optimiser"])
        self.quantiles.load_state_dict(state["quantiles"])
        self.generator.set_state(state["random"])
