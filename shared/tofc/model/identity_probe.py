"""A probe that tells whether an engine runs a checkpoint's decoder: a few prompts, and the tokens that must follow.

    probe.json ─ token ids of each prompt ─→ engine ─ its likeliest tokens ─→ distance in log probability ─→ the same?

Promises that a decoder in bfloat16 or float16 passes, and that one trained a little further does not. Leaves computing
a probe to the lab, which writes it when it splits a checkpoint, and asking the engine to the server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tofc import json_text
from tofc.errors import CheckpointError
from tofc.model.config import read_json

FILE = "probe.json"
FORMAT = 1
LIKELIEST = 5  # tokens of which the probe keeps, and an engine is asked for, log probabilities
TOLERANCE = 0.15  # nats; docs/serving.md has what was measured


@dataclass(frozen=True, kw_only=True)
class ProbePrompt:
    """A prompt, and what follows it."""

    ids: Sequence[int]  # [T]
    likeliest: Mapping[int, float]  # token id → log probability, of the `LIKELIEST` tokens


@dataclass(frozen=True, kw_only=True)
class IdentityProbe:
    """The probe of one model."""

    model_id: str
    prompts: Sequence[ProbePrompt]

    @classmethod
    def read(cls, folder: Path) -> IdentityProbe:
        """Read the probe of a checkpoint's folder. Raises `CheckpointError`."""
        file = folder / FILE
        if not file.exists():
            raise CheckpointError(
                f"{folder} has no {FILE}, which tells whether an engine elsewhere runs this model; write it: "
                f"tofc-lab probe {folder}"
            )
        raw = read_json(file)
        try:
            if raw["format"] != FORMAT:
                raise CheckpointError(f"{file}: format must be {FORMAT}, got {raw['format']!r}; write it again")
            prompts = [
                ProbePrompt(
                    ids=[int(number) for number in one["ids"]],
                    likeliest={int(token): float(value) for token, value in one["likeliest"].items()},
                )
                for one in raw["prompts"]
            ]
            model_id = str(raw["model_id"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{file} is malformed ({error!r}); write it again: tofc-lab probe") from None
        if not prompts or not all(one.ids and one.likeliest for one in prompts):
            raise CheckpointError(f"{file} must have prompts with ids and likeliest; write it again: tofc-lab probe")
        return cls(model_id=model_id, prompts=prompts)

    def write(self, folder: Path) -> None:
        """Write the probe into a checkpoint's folder."""
        prompts: list[dict[str, Any]] = [
            {"ids": list(one.ids), "likeliest": {str(token): round(value, 4) for token, value in one.likeliest.items()}}
            for one in self.prompts
        ]
        json_text.write(folder / FILE, {"format": FORMAT, "model_id": self.model_id, "prompts": prompts})


def distance(probe: IdentityProbe, found: Sequence[Mapping[int, float]]) -> float:
    """Return how far an engine is from the probe's model, in nats: `TOLERANCE` at most if it is the same.

    `found` maps, for each prompt, the engine's likeliest tokens to their log probabilities. Infinite if one is not a
    number. The mean of absolute differences; a token that the engine does not list is at most as likely as its last.
    """
    differences: list[float] = []
    for one, given in zip(probe.prompts, found, strict=True):
        if not given or not all(map(math.isfinite, given.values())):
            return math.inf
        last = min(given.values())
        for token, wanted in one.likeliest.items():
            differences.append(abs(given[token] - wanted) if token in given else max(0.0, wanted - last))
    return sum(differences) / len(differences)
