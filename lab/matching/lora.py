"""Low-rank adapters on the frozen decoder (LoRA, arXiv 2106.09685), trained along with a codec.

Promises that the model without its adapters stays what is matched, and that adapters end up inside the weights of a
checkpoint of their own, so that nothing that serves it has to know of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared.model.checkpoint import Checkpoint, CheckpointError
from shared.model.room import need_disk

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


class Adapters:
    """Adapters of ``rank`` in all of a model's attention layers; they begin as nothing."""

    def __init__(self, model: nn.Module, rank: int) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(TARGETS)), model)
        self.layers: dict[str, Any] = {
            name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)
        }
        for one in self.parameters().values():
            one.data = one.data.float()  # an optimiser's small steps are lost in half precision
            one.requires_grad_(True)

    def parameters(self) -> dict[str, nn.Parameter]:
        """By names without dots, as a ``ParameterDict`` wants them."""
        return {
            f"{layer}.{name}".replace(".", "-"): one
            for layer, module in self.layers.items()
            for name, one in module.named_parameters()
            if "lora_" in name
        }

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model as it was."""
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)

    def deltas(self) -> dict[str, Tensor]:
        """What they add to the decoder's tensors, by released name."""
        return {f"{name}.weight": layer.get_delta_weight("default").detach() for name, layer in self.layers.items()}


def need_room(checkpoint: Checkpoint, out: Path) -> None:
    """Raises ``RoomError`` if the adapted model will not fit the disk at ``out``."""
    files = {one.file for one in checkpoint.stored.values()}
    size = sum(file.stat().st_size for file in files)
    need_disk(size, out, "the adapted model", over=(out / file.name for file in files))


def merge(checkpoint: Checkpoint, deltas: dict[str, Tensor], out: Path) -> str:
    """Write a whole checkpoint with ``deltas`` added to its weights, file by file; returns its model's id.

    Raises ``CheckpointError`` if a tensor to add to is not there, ``RoomError`` if the disk is too small.
    """
    files = sorted({one.file for one in checkpoint.stored.values()})
    need_room(checkpoint, out)
    if lacking := sorted(deltas.keys() - checkpoint.stored.keys()):
        raise CheckpointError(f"{checkpoint.path} has no tensor {lacking[0]} to add an adapter to")
    out.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.path.iterdir():
        if file.suffix in (".json", ".jinja", ".txt") and file.name != "codec.json":
            shutil.copyfile(file, out / file.name)
    for file in files:
        tensors = load_file(file)
        for name, delta in deltas.items():
            if checkpoint.stored[name].file == file:
                stored = tensors[checkpoint.stored[name].stored_name]
                tensors[checkpoint.stored[name].stored_name] = (stored.float() + delta.float().cpu()).to(stored.dtype)
        save_file(tensors, out / file.name, {"format": "pt"})
        (out / file.name).chmod(0o644)  # it is left to its writer alone
    return Checkpoint.open(out).model_id
