"""The tower as transformers implements it, to compare with; versions before 5.23 rotate by the row first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import Step3p7VisionConfig, Step3p7VisionModel

from tofc.model.checkpoint import Checkpoint

by_column_first = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="this version of transformers rotates positions by the row first, which is not the released model",
)


def by_transformers(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """Load a checkpoint's tensors with transformers' own loader and renaming."""
    state = {name.removeprefix("vision_model."): tensor for name, tensor in checkpoint.vision_tensors().items()}
    config = Step3p7VisionConfig(**checkpoint.config.tower.values)
    return Step3p7VisionModel.from_pretrained(None, config=config, state_dict=state, dtype=dtype).eval()
