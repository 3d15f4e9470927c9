"""The tower as transformers has it, where it has it right: 5.19 to 5.22 turn by the row first."""

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import Step3p7VisionConfig, Step3p7VisionModel

from shared.model.checkpoint import Checkpoint

by_column_first = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="this version of transformers turns positions by the row first, which is not the released model",
)


def by_transformers(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """A checkpoint's tensors through transformers' own loader and renaming."""
    state = {name.removeprefix("vision_model."): tensor for name, tensor in checkpoint.vision_tensors().items()}
    config = Step3p7VisionConfig(**checkpoint.config.vision)
    return Step3p7VisionModel.from_pretrained(None, config=config, state_dict=state, dtype=dtype).eval()
