"""The reverse of `export`: a shipped checkpoint becomes the parts of a run again, to continue its training.

Promises the shipped values, in single precision. Leaves out the codec, which must be trained again for each decoder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3Config

from tofc.codec.codec import Codec
from tofc.errors import UsageError
from tofc.model.checkpoint import Checkpoint
from tofc.model.prompt import load_tokenizer
from tofc.model.released_names import VISION
from tofc_lab.nano.answerer import SIDES, SLOT, Answerer


def answerer_of(checkpoint: Checkpoint) -> Answerer:
    """Load the shipped decoder, projector and grid embedding."""
    config, codec = checkpoint.config, Codec.load(checkpoint.codec_path)
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
    """Write `tower.pt`, `decoder.pt` and `tokenizer/` of `model` into `run`, as training does.

    Raises `UsageError` instead of overwriting the trained parts of a run.
    """
    if there := [str(run / name) for name in ("tower.pt", "decoder.pt") if (run / name).exists()]:
        raise UsageError(
            f"--run must have no trained parts yet, has {' and '.join(there)}; choose another, or remove them"
        )
    checkpoint = Checkpoint.open(model)
    run.mkdir(parents=True, exist_ok=True)
    tower = {name.removeprefix(VISION): tensor.float() for name, tensor in checkpoint.vision_tensors().items()}
    torch.save({name: part.clone() for name, part in checkpoint.config.tower.state(tower).items()}, run / "tower.pt")
    torch.save(answerer_of(checkpoint).state_dict(), run / "decoder.pt")
    load_tokenizer(checkpoint).save_pretrained(run / "tokenizer")
