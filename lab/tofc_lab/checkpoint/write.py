"""Writing a whole checkpoint from its tensors.

Promises that the written checkpoint can be opened. Leaves the names of tensors to `tofc.model.released_names`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tofc.model.checkpoint import Checkpoint
from tofc.model.config import SplitConfig

if TYPE_CHECKING:
    import torch


def write(
    out: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], dtype: torch.dtype | None = None
) -> None:
    """Write `config.json` and the released tensors (see `to_released`), cast to `dtype` if given.

    Raises `CheckpointError` if the written checkpoint cannot be opened.
    """
    from safetensors.torch import save_file

    SplitConfig.parse(config)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", config)
    stored = {name: tensor.to(dtype or tensor.dtype).contiguous().clone() for name, tensor in tensors.items()}
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors makes it readable for its owner alone
    Checkpoint.open(out)


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Write JSON with an indent of 2, as the hub's files have it."""
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
