"""The configuration of the EfficientNet-Lite2 tower, and its tensor names: those of `efficientnet_lite`'s modules.

vision_config: {"model_type": "efficientnet_lite2", "detail_width": W, "adapter_width": H, "concept_width": K,
"code_width": C, "output_width": D}, C < D
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tofc.errors import CheckpointError
from tofc.model.tower_config import Shapes, TowerConfig, positive
from tofc.model.views import Normalisation

if TYPE_CHECKING:
    from torch import nn

    from tofc.model.onnx_graph import OnnxGraph

STEM, HEAD = 32, 1280  # channels
#: stages of blocks: how many, kernel, stride of the first, expansion, channels out
STAGES = (
    (1, 3, 1, 1, 16),
    (3, 3, 2, 6, 24),
    (3, 5, 2, 6, 48),
    (4, 3, 2, 6, 88),
    (4, 5, 1, 6, 120),  # its map has stride 16
    (5, 5, 2, 6, 208),
    (1, 3, 1, 6, 352),
)
DETAIL_BLOCKS, DETAIL = 15, 120  # blocks before the map that the detail branch reads, and that map's channels
COLOURS, COLOUR_POOLS = 3, 4  # channels of the pixels, which it reads too, and their halvings to that map's stride
_WIDTHS = ("detail_width", "adapter_width", "concept_width", "code_width", "output_width")
_UNBIASED = ("detail_colours", "concepts.2")
_STRIDE = 64  # px of a feature: the trunk's 32, and means of 2 × 2


@dataclass(frozen=True, kw_only=True)
class Block:
    """An inverted bottleneck of the trunk."""

    width: int  # channels in
    out: int
    kernel: int
    stride: int
    expansion: int

    @property
    def inner(self) -> int:
        """Channels of the filters."""
        return self.width * self.expansion

    @property
    def skips(self) -> bool:
        """Whether what comes in is added to what comes out."""
        return self.stride == 1 and self.width == self.out


def blocks() -> Iterator[Block]:
    """Yield the trunk's blocks in their order."""
    width = STEM
    for count, kernel, stride, expansion, out in STAGES:
        for number in range(count):
            yield Block(width=width, out=out, kernel=kernel, stride=stride if number == 0 else 1, expansion=expansion)
            width = out


@dataclass(frozen=True)
class EfficientNetLite2Config(TowerConfig):
    """The widths; the trunk has none to choose."""

    MODEL_TYPE: ClassVar[str] = "efficientnet_lite2"
    NORMALISATION: ClassVar[Normalisation] = Normalisation(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    BACKENDS: ClassVar[Sequence[str]] = ("onnx", "torch")

    def __post_init__(self) -> None:
        for name in _WIDTHS:
            positive(f"vision_config.{name}", self.values.get(name))
        if not self.values["code_width"] < self.values["output_width"]:
            raise CheckpointError(
                f"config.json: vision_config.code_width must be less than output_width, {self.values['output_width']}, "
                f"got {self.values['code_width']}"
            )
        if extra := sorted(self.values.keys() - set(_WIDTHS)):
            raise CheckpointError(
                f"config.json: vision_config of {self.MODEL_TYPE} must have {', '.join(_WIDTHS)} only, got {extra[0]}"
            )

    @property
    def side_multiple(self) -> int:
        return 1

    @property
    def feature_dim(self) -> int:
        return int(self.values["output_width"])

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"global_size": 336, "crop_size": 224, "max_side": 1344}

    def grid(self, side: int) -> int:
        return -(-side // _STRIDE)

    def shapes(self) -> Shapes:
        detail, adapter, concepts, code, out = (int(self.values[name]) for name in _WIDTHS)
        found: Shapes = {"trunk.stem": (STEM, 3, 3, 3)}
        for number, one in enumerate(blocks()):
            name = f"trunk.blocks.{number}"
            if one.expansion > 1:
                found[f"{name}.expand"] = (one.inner, one.width, 1, 1)
            found[f"{name}.depthwise"] = (one.inner, 1, one.kernel, one.kernel)
            found[f"{name}.project"] = (one.out, one.inner, 1, 1)
        found |= {
            "trunk.head": (HEAD, STAGES[-1][-1], 1, 1),
            "detail.0": (detail, DETAIL, 3, 3),
            "detail_colours": (detail, COLOURS, 3, 3),
            "detail.2": (detail, detail, 3, 3),
            "adapter.0": (adapter, HEAD + detail),
            "adapter.2": (out - code, adapter),
            "concepts.0": (concepts, HEAD),
            "concepts.2": (code, concepts),
        }
        return {f"{name}.weight": shape for name, shape in found.items()} | {
            f"{name}.bias": shape[:1] for name, shape in found.items() if name not in _UNBIASED
        }

    def view_bytes(self, side: int, item_bytes: int) -> int:
        """Count the widest map, of the first block that expands, three times: in, out, and its padded copy."""
        return 3 * item_bytes * 96 * (side // 2 + 2) ** 2

    def onnx(self, weights: Mapping[str, NDArray[np.float32]], *, int8: bool = False) -> OnnxGraph:
        """Return the graph pixels [1, 3, S, S] → features [1, N, D] for every side S."""
        from tofc.model.onnx_graph import OnnxGraph

        graph = OnnxGraph()
        zero, six = graph.constant(0), graph.constant(6)

        def convolution(x: str, name: str, stride: int = 1, groups: int = 1, *, clip: bool, pads: bool = False) -> str:
            given = [f"{name}.{part}" for part in ("weight", "bias") if f"{name}.{part}" in weights]
            padding: dict[str, Any] = {"pads": (1, 1, 1, 1)} if pads else {"auto_pad": "SAME_UPPER"}  # TensorFlow's
            values = (graph.weight(one, weights[one]) for one in given)
            found = graph.node("Conv", x, *values, strides=(stride, stride), group=groups, **padding)
            return graph.node("Clip", found, zero, six) if clip else found

        def linear(x: str, name: str) -> str:
            weight = graph.weight(f"{name}.weight", weights[f"{name}.weight"].T)
            product = graph.node("MatMul", x, weight)
            if name in _UNBIASED:
                return product
            return graph.node("Add", product, graph.weight(f"{name}.bias", weights[f"{name}.bias"]))

        def cells(x: str) -> str:  # [1, C, G, G] → [1, N, C]
            x = graph.node("Reshape", x, graph.constant((0, 0, -1), np.int64))
            return graph.node("Transpose", x, perm=(0, 2, 1))

        def means(x: str) -> str:
            return graph.node("AveragePool", x, kernel_shape=(2, 2), strides=(2, 2), ceil_mode=1, count_include_pad=0)

        colours = graph.input("pixels", "float", (1, 3, "S", "S"))
        x = convolution(colours, "trunk.stem", 2, clip=True)
        for _ in range(COLOUR_POOLS):
            colours = means(colours)
        detail = ""
        for number, one in enumerate(blocks()):
            name, given = f"trunk.blocks.{number}", x
            if one.expansion > 1:
                x = convolution(x, f"{name}.expand", clip=True)
            x = convolution(x, f"{name}.depthwise", one.stride, one.inner, clip=True)
            x = convolution(x, f"{name}.project", clip=False)
            if one.skips:
                x = graph.node("Add", given, x)
            if number + 1 == DETAIL_BLOCKS:
                detail = x
        x = means(convolution(x, "trunk.head", clip=True))
        detail = convolution(detail, "detail.0", 2, clip=False, pads=True)
        detail = graph.node("Add", detail, convolution(colours, "detail_colours", 2, clip=False, pads=True))
        detail = graph.node("Gelu", detail)
        detail = convolution(detail, "detail.2", 2, clip=False, pads=True)
        joined = linear(cells(graph.node("Concat", x, detail, axis=1)), "adapter.0")
        named = graph.node("Softmax", linear(cells(x), "concepts.0"), axis=-1)
        named, rest = linear(named, "concepts.2"), linear(graph.node("Gelu", joined), "adapter.2")
        found = graph.node("Concat", named, rest, axis=2)
        graph.output(found, (1, "N", self.feature_dim))
        return graph

    def network(self) -> nn.Module:
        from tofc.model.efficientnet_lite import EfficientNetLite2Tower

        return EfficientNetLite2Tower(self.values)
