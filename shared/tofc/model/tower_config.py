"""What a vision tower is, as far as both machines must know it before its weights are read.

    config.json: vision_config ─ model_type ─→ a TowerConfig: grid, width, tensors, pixels, memory, network

Promises that a number which a tower does not implement is refused here. Each tower is a subclass in a file of its own;
`TOWERS` names it. Leaves the computation to the back ends (`vision_tower`), which ask `network` or `onnx` for it.
docs/towers.md says how to add one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tofc.errors import CheckpointError
from tofc.model.views import Normalisation

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tofc.model.onnx_graph import OnnxGraph

Shapes = dict[str, tuple[int, ...]]
#: value of `model_type` → module and class; a module is imported only for a checkpoint that has such a tower
TOWERS = {
    "perception_encoder": ("tofc.model.perception_encoder_config", "PerceptionEncoderConfig"),
    "efficientnet_lite2": ("tofc.model.efficientnet_lite_config", "EfficientNetLite2Config"),
}
DEFAULT = "perception_encoder"  # STEP3-VL's; also of a checkpoint that names no tower
_OF_TRANSFORMERS = ("model_type", "architectures", "torch_dtype", "dtype")  # keys that say nothing about the network
_STEP = "step"  # begins STEP3-VL's names of it in transformers: step3p5_vision, …


@dataclass(frozen=True)
class TowerConfig(ABC):
    """One tower's `vision_config`. Raises `CheckpointError` for values that the tower does not implement."""

    values: Mapping[str, Any]
    """The checked keys and values, those left out filled with the tower's own."""

    MODEL_TYPE: ClassVar[str]
    NORMALISATION: ClassVar[Normalisation] = Normalisation()
    """What it wants of pixels."""
    BACKENDS: ClassVar[Sequence[str]] = ("torch",)
    """What can compute it, the best for a small tower first; torch always."""
    INT8: ClassVar[bool] = False
    """Whether answers stay good with its linear layers in int8."""
    HALF: ClassVar[bool] = False
    """Whether a CPU computes it in bfloat16 by default if it is stored so."""

    @classmethod
    def filled(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return `vision_config` with the tower's own names of keys, and with default values for those left out."""
        return dict(given)

    @property
    @abstractmethod
    def side_multiple(self) -> int:
        """The side of a view in px must be a multiple of it."""

    @property
    @abstractmethod
    def feature_dim(self) -> int:
        """D: numbers in a feature."""

    @property
    @abstractmethod
    def sizes(self) -> Mapping[str, int]:
        """Default global_size, crop_size and max_side in px, see `ViewRule`."""

    @abstractmethod
    def grid(self, side: int) -> int:
        """Return the side, in cells, of the grid of features of a view of `side` px."""

    @abstractmethod
    def shapes(self) -> Shapes:
        """Return name and shape of every stored tensor, without `vision_model.`."""

    @abstractmethod
    def view_bytes(self, side: int, item_bytes: int) -> int:
        """Return about how much memory computing a view of `side` px takes, besides the weights."""

    @abstractmethod
    def network(self) -> nn.Module:
        """Build the tower in torch: pixels [B, 3, S, S] → features [B, N, D]."""

    def state(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state of `network` from stored tensors, without copies."""
        return dict(stored)

    def stored(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors to store from the state of `network`: the inverse of `state`."""
        return dict(state)

    def onnx(self, weights: Mapping[str, NDArray[np.float32]], *, int8: bool = False) -> OnnxGraph:
        """Return a graph that computes one view from `onnx_inputs`. Only if `BACKENDS` has onnx."""
        raise NotImplementedError(f"{self.MODEL_TYPE} has no ONNX graph")

    def onnx_kept(self, weights: Mapping[str, NDArray[np.float32]]) -> Mapping[str, NDArray[np.float32]]:
        """Return the weights that `onnx_inputs` needs."""
        return {}

    def onnx_inputs(
        self, pixels: NDArray[np.float32], kept: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, NDArray[Any]]:
        """Return the graph's inputs for a view [3, S, S]."""
        return {"pixels": pixels[None]}


def parse_tower(raw: Mapping[str, Any]) -> TowerConfig:
    """Read a `vision_config`. Raises `CheckpointError`."""
    kind = raw.get("model_type", DEFAULT)
    if isinstance(kind, str) and kind.startswith(_STEP):
        kind = DEFAULT
    if kind not in TOWERS:
        raise CheckpointError(
            f"config.json: vision_config.model_type must be one of {', '.join(TOWERS)}, got {kind!r}; docs/towers.md "
            "says how to add a vision tower"
        )
    module, name = TOWERS[kind]
    kind_of: type[TowerConfig] = getattr(import_module(module), name)
    return kind_of(kind_of.filled({key: value for key, value in raw.items() if key not in _OF_TRANSFORMERS}))


def positive(name: str, value: Any) -> int:
    """Check a positive whole number of `config.json`. Raises `CheckpointError`."""
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise CheckpointError(f"config.json: {name} must be a positive whole number, got {value!r}")
    return value
