"""A shipped checkpoint → the trained parts it was exported from, so that training can go on from it.

Promises the shipped values, in single precision. Leaves the codec: it is trained anew for another decoder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3Config

from lab.nano.answerer import SIDES, SLOT, Answerer
from shared.codec.codec import Codec
from shared.model.checkpoint import Checkpoint
from shared.model.prompt import load_tokenizer
from shared.model.released_names import VISION, from_released


def answerer_of(checkpoint: Checkpoint) -> Answerer:
    """The shipped decoder, projector and grid embedding."""
    config, codec = checkpoint.config, Codec.load(checkpoint.path)
    answerer = Answerer(config.feature_dim, Qwen3Config(**config.text))
    state = {f"decoder.{name}": tensor.float() for name, tensor in checkpoint.decoder_tensors().items()}
    for name, tensor in checkpoint.projector_tensors().items():
        state[f"projector.{name.rsplit('.', 1)[-1]}"] = tensor.float()
    grid = torch.zeros_like(answerer.grid.weight)
    for side in SIDES:
        grid[SLOT[side] : SLOT[side] + side * side] = torch.from_numpy(
            codec.grid_embedding(side, np.arange(side * side))
        )
    answerer.load_state_dict(state | {"grid.weight": grid})
    return answerer.eval()


def unpack(model: Path, run: Path) -> None:
    """Write ``tower.pt``, ``decoder.pt`` and ``tokenizer/`` of ``model`` into ``run``, as training leaves them.

    Raises ``FileExistsError`` rather than write over what a run has trained.
    """
    if there := [str(run / name) for name in ("tower.pt", "decoder.pt") if (run / name).exists()]:
        raise FileExistsError(f"{' and '.join(there)} exists: choose another --run, or delete it")
    checkpoint = Checkpoint.open(model)
    run.mkdir(parents=True, exist_ok=True)
    tower = {name.removeprefix(VISION): tensor.float() for name, tensor in checkpoint.vision_tensors().items()}
    torch.save({name: part.clone() for name, part in from_released(tower).items()}, run / "tower.pt")
    torch.save(answerer_of(checkpoint).state_dict(), run / "decoder.pt")
    load_tokenizer(checkpoint).save_pretrained(run / "tokenizer")
