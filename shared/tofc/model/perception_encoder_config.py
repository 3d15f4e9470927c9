"""The configuration of STEP3-VL's vision tower, the Perception Encoder, and its released tensor names.

Promises that values which `perception_encoder` does not implement are refused. Its modules have the released names,
except that queries, keys and values are released as one layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tofc.errors import CheckpointError
from tofc.model.tower_config import Shapes, TowerConfig, positive

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tofc.model.onnx_graph import OnnxGraph

ROPE_THETA = 10_000  # base of the frequencies of rotary positions
#: key in the released checkpoint → key in transformers' `Step3p7VisionConfig`
_ALIASES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ls_init_value": "layer_scale_init_value",
}
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1536,
    "num_hidden_layers": 47,
    "num_attention_heads": 16,
    "num_channels": 3,
    "patch_size": 14,
    "image_size": 728,
    "mlp_ratio": 8960 / 1536,
    "layer_norm_eps": 1e-5,
    "layer_scale_init_value": 0.1,
}
#: the only values that `PerceptionEncoder` implements, under the keys of transformers' and vLLM's configurations
_FIXED: dict[str, Any] = {
    "num_channels": 3,
    "hidden_act": "quick_gelu",
    "use_ln_pre": True,
    "use_ln_post": False,
    "use_cls_token": False,
    "use_abs_posemb": True,
    "use_rope2d": True,
    "rope_theta": ROPE_THETA,
    "rope_type": "axial",
}


@dataclass(frozen=True)
class PerceptionEncoderConfig(TowerConfig):
    """Keyword arguments of transformers' `Step3p7VisionConfig`."""

    MODEL_TYPE: ClassVar[str] = "perception_encoder"
    BACKENDS: ClassVar[Sequence[str]] = ("numpy", "onnx", "torch")
    INT8: ClassVar[bool] = True
    HALF: ClassVar[bool] = True

    @classmethod
    def filled(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Accept the released keys (`width`, `layers`, …) too."""
        return _DEFAULTS | {_ALIASES.get(key, key): value for key, value in given.items()}

    def __post_init__(self) -> None:
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size"):
            positive(f"vision_config.{key}", self.values.get(key))
        rope = self.values.get("rope_parameters")
        for key, value in [*self.values.items(), *(rope.items() if isinstance(rope, dict) else [])]:
            if key in _FIXED and value != _FIXED[key]:
                raise CheckpointError(
                    f"config.json: vision_config.{key} must be {_FIXED[key]!r}, as in STEP3-VL's tower, got {value!r}"
                )
        if self.values["hidden_size"] % (4 * self.values["num_attention_heads"]):
            raise CheckpointError(
                "config.json: the width of a vision head must be a multiple of 4 for 2-D rotary positions, got "
                f"{self.values['hidden_size']} / {self.values['num_attention_heads']} heads"
            )

    @property
    def width(self) -> int:
        """W: numbers of a token."""
        return int(self.values["hidden_size"])

    @property
    def head(self) -> int:
        """Width of a head of attention."""
        return self.width // int(self.values["num_attention_heads"])

    @property
    def inner(self) -> int:
        """Width of the MLPs."""
        return int(self.width * self.values["mlp_ratio"])

    @property
    def side_multiple(self) -> int:
        return int(self.values["patch_size"])

    @property
    def feature_dim(self) -> int:
        return 4 * self.width  # each of the two convolutions doubles it

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"global_size": self.values["image_size"], "crop_size": 504, "max_side": 3024}

    def grid(self, side: int) -> int:
        patches = side // self.side_multiple
        return ((patches - 1) // 2 + 1 - 1) // 2 + 1  # halved twice by convolutions

    def shapes(self) -> Shapes:
        width, inner, patch = self.width, self.inner, self.side_multiple
        found: Shapes = {
            "conv1.weight": (width, int(self.values["num_channels"]), patch, patch),
            "positional_embedding": ((int(self.values["image_size"]) // patch) ** 2, width),
            "ln_pre.weight": (width,),
            "ln_pre.bias": (width,),
            "vit_downsampler1.weight": (2 * width, width, 3, 3),
            "vit_downsampler1.bias": (2 * width,),
            "vit_downsampler2.weight": (4 * width, 2 * width, 3, 3),
            "vit_downsampler2.bias": (4 * width,),
        }
        block: Shapes = {
            "attn.in_proj_weight": (3 * width, width),
            "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width),
            "attn.out_proj.bias": (width,),
            "mlp.c_fc.weight": (inner, width),
            "mlp.c_fc.bias": (inner,),
            "mlp.c_proj.weight": (width, inner),
            "mlp.c_proj.bias": (width,),
        }
        for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias", "ls_1.gamma", "ls_2.gamma"):
            block[name] = (width,)
        for layer in range(self.values["num_hidden_layers"]):
            found |= {f"transformer.resblocks.{layer}.{name}": shape for name, shape in block.items()}
        return found

    def view_bytes(self, side: int, item_bytes: int) -> int:
        """Count the widest tensors: in the MLP, and where queries are rotated, in float32."""
        token = item_bytes * (3 * self.inner + 8 * self.width) + 4 * 6 * self.width
        return token * (side // self.side_multiple) ** 2

    def onnx(self, weights: Mapping[str, NDArray[np.float32]], *, int8: bool = False) -> OnnxGraph:
        from tofc.model import perception_encoder_onnx

        return perception_encoder_onnx.graph(self, weights, int8=int8)

    def onnx_kept(self, weights: Mapping[str, NDArray[np.float32]]) -> Mapping[str, NDArray[np.float32]]:
        from tofc.model import perception_encoder_onnx

        return {name: weights[name] for name in perception_encoder_onnx.KEPT}

    def onnx_inputs(
        self, pixels: NDArray[np.float32], kept: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, NDArray[Any]]:
        from tofc.model import perception_encoder_onnx

        return perception_encoder_onnx.inputs(self, pixels, kept)

    def network(self) -> nn.Module:
        from tofc.model.perception_encoder import PerceptionEncoder

        return PerceptionEncoder(self.values)

    def state(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Divide the layers of queries, keys and values in three."""
        found: dict[str, Tensor] = {}
        for name, tensor in stored.items():
            before, joined, kind = name.partition("in_proj_")
            if joined:
                found |= {f"{before}{qkv}_proj.{kind}": part for qkv, part in zip("qkv", tensor.chunk(3), strict=True)}
            else:
                found[name] = tensor
        return found

    def stored(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Join the three layers of queries, keys and values."""
        import torch

        found = {name: tensor for name, tensor in state.items() if not re.search(r"attn\.[qkv]_proj\.", name)}
        for name in state:
            before, of_queries, kind = name.partition("q_proj.")
            if of_queries:
                parts = [state[part] for qkv in "qkv" if (part := f"{before}{qkv}_proj.{kind}") in state]
                found[f"{before}in_proj_{kind}"] = torch.cat(parts)
        return found
