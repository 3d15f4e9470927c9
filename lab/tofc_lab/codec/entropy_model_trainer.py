"""Training of the context model alone, with cheap steps that minimise only the rate.

The context model affects nothing but the rate, so its steps need no decoder and no questions. With only one step
for each step of the transform it lagged far behind the transform (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tofc_lab.codec.distributed import ProcessGroup
from tofc_lab.codec.model import CodecModel
from tofc_lab.codec.places import Places, Pool, joined

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

    def run(self, rates: Sequence[float], quality: int | None = None) -> list[float]:
        """Make a step at each of these learning rates, and return the bits per feature of each.

        Each is at the same quality, or at a random one if that is None. Whole steps of all batches are chosen together,
        by the model before the first step: slice by slice, with many launches, they would take most of the time.
        """
        device = self.model.mean.device
        batches = [self._draw(quality) for _ in rates]
        drawn = torch.cat([features for features, _, _ in batches]).to(device)
        places = joined([where for _, where, _ in batches]).to(device)
        sizes = [len(features) for features, _, _ in batches]
        each: Tensor | int
        if quality is None:
            each = torch.tensor([one for _, _, one in batches]).repeat_interleave(torch.tensor(sizes)).to(device)
        else:
            each = quality
        with torch.no_grad():
            components = drawn if self.frozen else self.model.project(drawn.float())
            y = components / self.model.log_step[each].exp()
        dropped = self.model.context.dropped(len(y))
        q = self.model.choose(y, each, places, dropped)
        found = []
        parts = zip(rates, q.split(sizes), dropped.split(sizes), batches, strict=True)
        for rate, steps, kept, (_, where, number) in parts:
            self.optimiser.param_groups[0]["lr"] = rate
            bits = self.model.bits(steps, number, where.to(device), kept).mean()
            self.optimiser.zero_grad()  # of a step through the decoder
            bits.backward()
            self.processes.average_gradients(self.parameters)
            torch.nn.utils.clip_grad_norm_(self.parameters, 5.0)
            self.optimiser.step()
            found.append(bits.detach())
        self.optimiser.zero_grad()
        return torch.stack(found).tolist()

    def _draw(self, quality: int | None) -> tuple[Tensor, Places, int]:
        """Return the next step's features (components, once frozen), their places, and the quality."""
        if quality is None:
            quality = int(torch.randint(self.model.qualities, (1,), generator=self._seeded(0)))  # the same on all ranks
        self._seeded(1 + self.processes.rank)
        self.steps += 1
        features, places = self.pool.draw(self.generator, self.batch)
        return features, places, quality

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
