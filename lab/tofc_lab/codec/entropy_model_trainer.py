"""Training of the context model alone, with cheap steps that minimise only the rate.

The context model affects nothing but the rate, so its steps need no decoder and no questions. With only one step
for each step of the transform it lagged far behind the transform (docs/decisions.md).
"""

from __future__ import annotations

from typing import Any

import torch

from tofc_lab.codec.distributed import ProcessGroup
from tofc_lab.codec.model import CodecModel
from tofc_lab.codec.places import Pool

BATCH = 1600  # features of a step


class EntropyModelTrainer:
    """Trainer of a codec's context model on the features of `pool`, in batches of about `batch` features."""

    def __init__(
        self, model: CodecModel, pool: Pool, seed: int, batch: int = BATCH, processes: ProcessGroup | None = None
    ) -> None:
        self.model, self.pool, self.batch, self.processes = model, pool, batch, processes or ProcessGroup()
        self.seed, self.steps = seed, 0
        self.generator = torch.Generator()
        self.parameters = list(model.context.parameters())
        self.optimiser = torch.optim.AdamW(self.parameters, weight_decay=0.05)
        self.frozen = False

    @torch.no_grad()
    def freeze(self) -> None:
        """Replace the features by their components; call it when the transform no longer changes."""
        project, device = self.model.project, self.model.mean.device
        parts = [project(part.float().to(device)).cpu() for part in self.pool.features.split(1 << 14)]
        self.pool, self.frozen = self.pool.mapped(torch.cat(parts)), True

    def step(self, rate: float, quality: int | None = None) -> float:
        """Make one step at a quality, a random one if None, and return the bits per feature."""
        self.optimiser.param_groups[0]["lr"] = rate
        if quality is None:
            quality = int(torch.randint(self.model.qualities, (1,), generator=self._seeded(0)))  # the same on all ranks
        self._seeded(1 + self.processes.rank)
        self.steps += 1
        features, places = self.pool.draw(self.generator, self.batch)
        device = self.model.mean.device
        with torch.no_grad():
            components = features.to(device) if self.frozen else self.model.project(features.float().to(device))
            y = components / self.model.log_step[quality].exp()
        bits = self.model.code(y, quality, places.to(device))[1].mean()
        self.optimiser.zero_grad()
        bits.backward()
        self.processes.average_gradients(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, 5.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return bits.item()

    def _seeded(self, sequence: int) -> torch.Generator:
        """Return the generator, seeded for one of this step's sequences: 0 the quality, 1 + rank the batch."""
        return self.generator.manual_seed((self.seed << 48) + (self.steps << 16) + sequence)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state and the number of steps, for `load_state_dict`."""
        return {"optimiser": self.optimiser.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.optimiser.load_state_dict(state["optimiser"])
        self.steps = state["steps"]
