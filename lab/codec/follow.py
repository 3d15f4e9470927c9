"""The context model, kept close to the transform: cheap steps on the rate alone.

Nothing but the rate depends on it, so it needs no decoder and no questions. Trained only as often as the
transform it stayed far behind (docs/decisions.md).
"""

from __future__ import annotations

from typing import Any

import torch

from lab.codec.model import CodecModel
from lab.codec.places import Pool
from lab.codec.team import Team


class Follower:
    """Trains the context model of a codec on features of ``seen``."""

    def __init__(self, model: CodecModel, seen: Pool, seed: int, batch: int = 1600, team: Team | None = None) -> None:
        self.model, self.seen, self.batch, self.team = model, seen, batch, team or Team()
        self.seed, self.steps = seed, 0
        self.generator = torch.Generator()
        self.parameters = list(model.context.parameters())
        self.optimiser = torch.optim.AdamW(self.parameters, weight_decay=0.05)
        self.frozen = False

    @torch.no_grad()
    def freeze(self) -> None:
        """The transform moves no more: keep the features' components only."""
        project, device = self.model.project, self.model.mean.device
        parts = [project(part.float().to(device)).cpu() for part in self.seen.features.split(1 << 14)]
        self.seen, self.frozen = self.seen.mapped(torch.cat(parts)), True

    def step(self, rate: float, quality: int | None = None) -> float:
        """One step at a quality, a random one when none is given; returns the bits of a feature."""
        self.optimiser.param_groups[0]["lr"] = rate
        if quality is None:
            quality = int(torch.randint(self.model.qualities, (1,), generator=self._draws(0)))  # the same for all
        self._draws(1 + self.team.rank)
        self.steps += 1
        features, places = self.seen.draw(self.generator, self.batch)
        device = self.model.mean.device
        with torch.no_grad():
            components = features.to(device) if self.frozen else self.model.project(features.float().to(device))
            y = components / self.model.log_step[quality].exp()
        bits = self.model.code(y, quality, places.to(device))[1].mean()
        self.optimiser.zero_grad()
        bits.backward()
        self.team.average(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, 5.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return bits.item()

    def _draws(self, which: int) -> torch.Generator:
        """Begins one of this step's random sequences."""
        return self.generator.manual_seed((self.seed << 48) + (self.steps << 16) + which)

    def state_dict(self) -> dict[str, Any]:
        """For :meth:`load_state_dict`: optimiser and number of steps."""
        return {"optimiser": self.optimiser.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What :meth:`state_dict` gave."""
        self.optimiser.load_state_dict(state["optimiser"])
        self.steps = state["steps"]
