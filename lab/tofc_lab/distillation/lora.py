"""Low-rank adapters on the frozen decoder (LoRA, arXiv 2106.09685), trained along with a codec.

Promises that the answers to preserve are still those of the model without adapters, and that adapters are merged into
the weights of a new checkpoint, so that a server needs no support for them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tofc.errors import CheckpointError
from tofc.model.checkpoint import Checkpoint
from tofc.model.resources import require_disk

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


class Adapters:
    """Adapters in all of a model's attention layers, by the name of the layer; `inject` makes them."""

    def __init__(self, layers: dict[str, Any]) -> None:
        self.layers = layers

    @classmethod
    def inject(cls, model: nn.Module, rank: int) -> Self:
        """Put adapters of `rank` into the model; they change nothing until they are trained."""
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(TARGETS)), model)
        adapters = cls({name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)})
        for one in adapters.parameters().values():
            one.data = one.data.float()  # an optimiser's small steps are lost in half precision
            one.requires_grad_(True)
        return adapters

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters by names without dots, as `ParameterDict` requires."""
        return {
            f"{layer}.{name}".replace(".", "-"): one
            for layer, module in self.layers.items()
            for name, one in module.named_parameters()
            if "lora_" in name
        }

    @contextmanager
    def off(self) -> Iterator[None]:
        """Disable the adapters within a `with` block."""
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)

    def deltas(self) -> dict[str, Callable[[], Tensor]]:
        """Return functions that compute what the adapters add to the decoder's tensors, by released name.

        Each result is a float32 matrix of the weight's size, on the CPU; all together they may be larger than a GPU.
        """
        return {f"{name}.weight": partial(_delta, layer) for name, layer in self.layers.items()}


def _delta(layer: Any) -> Tensor:
    found: Tensor = layer.get_delta_weight("default")
    return found.detach().float().cpu()


def require_disk_for(checkpoint: Checkpoint, out: Path) -> None:
    """Raise `ResourceError` if the adapted model does not fit on the disk at `out`."""
    files = {one.file for one in checkpoint.stored.values()}
    size = sum(file.stat().st_size for file in files)
    require_disk(size, out, "the adapted model", over=(out / file.name for file in files))


def merge(checkpoint: Checkpoint, deltas: Mapping[str, Callable[[], Tensor]], out: Path) -> str:
    """Write a whole checkpoint with `deltas` added to its weights, one after another, and return its model's id.

    Raises `CheckpointError` if a tensor to add to is missing, `ResourceError` if the disk is too small.
    """
    files = sorted({one.file for one in checkpoint.stored.values()})
    require_disk_for(checkpoint, out)
    if missing := sorted(deltas.keys() - checkpoint.stored.keys()):
        raise CheckpointError(f"{checkpoint.path} has no tensor {missing[0]} to add an adapter to")
    out.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.path.iterdir():
        if file.suffix in (".json", ".jinja", ".txt") and file.name != "codec.json":
            shutil.copyfile(file, out / file.name)
    for file in files:
        tensors = load_file(file)
        for name, delta in deltas.items():
            if checkpoint.stored[name].file == file:
                stored = tensors[checkpoint.stored[name].stored_name]
                tensors[checkpoint.stored[name].stored_name] = (stored.float() + delta()).to(stored.dtype)
        save_file(tensors, out / file.name, {"format": "pt"})
        (out / file.name).chmod(0o644)  # safetensors makes it readable for its owner alone
    return Checkpoint.open(out).model_id
