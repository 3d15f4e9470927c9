"""What the two trainings of nano's decoder share: the settings of a checkpoint, resuming from it, and an update.

    decoder.ckpt ─ restore ─→ answerer, optimisers, step, running means ─ update … ─ save ─→ decoder.ckpt

Promises that a resumed run continues as if it had not been interrupted. Leaves losses and batches to `decoder` and
`pacore.train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tofc_lab import resume
from tofc_lab.nano.answerer import Answerer
from tofc_lab.resume import Settings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Optimisers = Sequence[torch.optim.Optimizer]


def settings_of(inputs: Settings, recipe: DataclassInstance, seed: int) -> dict[str, Any]:
    """Return all that a checkpoint of the decoder depends on, for `tofc_lab.resume.check`."""
    of_recipe = {f"--{name}": value for name, value in asdict(recipe).items() if name != "save"}
    return {**inputs, **of_recipe, "--seed": seed}


def restore(path: Path, settings: Settings, answerer: Answerer, optimisers: Optimisers) -> tuple[int, dict[str, float]]:
    """Continue from a checkpoint, if there is one; return its step and running means. Raises UsageError."""
    state = resume.load(path, settings)
    if state is None:
        return 0, {}
    answerer.load_state_dict(state["answerer"])
    for optimiser, values in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(values)
    return state["step"], state["running"]


def save(
    path: Path,
    settings: Settings,
    answerer: Answerer,
    optimisers: Optimisers,
    *,
    step: int,
    running: dict[str, float],
) -> None:
    """Write a checkpoint that `restore` continues from."""
    state = {
        "answerer": answerer.state_dict(),
        "optimisers": [one.state_dict() for one in optimisers],
        "step": step,
        "running": running,
    }
    resume.save(path, state, settings)


def set_rate(optimisers: Optimisers, rate: float) -> None:
    """Set the learning rate; a group's `scale` multiplies it."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate * group["scale"]


def update(answerer: Answerer, optimisers: Optimisers) -> None:
    """Make a step along the gradients, clipped to the norm 1, and clear them."""
    nn.utils.clip_grad_norm_(answerer.parameters(), 1.0)
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad()
