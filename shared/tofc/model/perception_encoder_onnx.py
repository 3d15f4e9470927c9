"""STEP3-VL's vision tower as an ONNX graph, in float32, or with its linear layers in int8.

    patches [G², 3·14·14] ─ conv1, + positions ─ ln_pre ─ L × (attention with 2-D RoPE, MLP) ─ conv ½ ─ conv ½

Promises the computation of `numpy_tower` in one graph for every side: tables that depend on the side are inputs. In
int8, weights have a scale for each output, and what comes in has one for each product, chosen anew each time. Weights
have 7 bits, so that no processor's sums of two products overflow 16 bits: answers are alike on all of them. Leaves
running to `onnx_tower`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tofc.model.numpy_tower import position_table, rotary_tables
from tofc.model.onnx_graph import OnnxGraph
from tofc.model.perception_encoder_config import PerceptionEncoderConfig

Array = NDArray[np.float32]
LEVELS = 63  # largest weight in int8
KEPT = ("positional_embedding",)  # what `inputs` needs


def graph(config: PerceptionEncoderConfig, weights: Mapping[str, Array], *, int8: bool) -> OnnxGraph:
    """Return the graph; `weights` are the stored tensors without `vision_model.`."""
    return _Builder(config, weights, int8).build()


def inputs(config: PerceptionEncoderConfig, pixels: Array, kept: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
    """Return the graph's inputs for a view [3, S, S]."""
    patch = config.side_multiple
    side = pixels.shape[-1] // patch
    patches = pixels.reshape(3, side, patch, side, patch).transpose(1, 3, 0, 2, 4).reshape(side * side, -1)
    cos, sin = rotary_tables(side, config.head)
    return {
        "patches": patches,
        "positions": position_table(kept["positional_embedding"], side),
        "cos": cos,
        "sin": sin,
        "shape": np.array([1, side, side, config.width], np.int64),
    }


class _Builder:
    def __init__(self, config: PerceptionEncoderConfig, weights: Mapping[str, Array], int8: bool) -> None:
        self.config, self.weights, self.int8 = config, weights, int8
        self.graph = OnnxGraph()

    def build(self) -> OnnxGraph:
        config, graph, node = self.config, self.graph, self.graph.node
        half = config.head // 2
        patches = graph.input("patches", "float", ("N", 3 * config.side_multiple**2))
        positions = graph.input("positions", "float", ("N", config.width))
        self.cos, self.sin = (graph.input(name, "float", ("N", half)) for name in ("cos", "sin"))
        shape = graph.input("shape", "int64", (4,))
        first = self.weights["conv1.weight"].reshape(config.width, -1).T
        x = node("Add", node("MatMul", patches, graph.weight("conv1.weight", first)), positions)
        x = self.norm(x, "ln_pre")  # [N, W]
        for layer in range(int(config.values["num_hidden_layers"])):
            block = f"transformer.resblocks.{layer}"
            x = node("Add", x, self.attention(self.norm(x, f"{block}.ln_1"), block))
            inner = self.linear(self.norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc.")
            gate = node("Sigmoid", node("Mul", inner, graph.constant(1.702)))  # quick GELU
            x = node(
                "Add", x, self.scaled(self.linear(node("Mul", inner, gate), f"{block}.mlp.c_proj."), f"{block}.ls_2")
            )
        x = node("Transpose", node("Reshape", x, shape), perm=(0, 3, 1, 2))  # [1, W, G, G]
        for name in ("vit_downsampler1", "vit_downsampler2"):
            x = node("Conv", x, *self.pair(f"{name}."), strides=(2, 2), pads=(1, 1, 1, 1))
        x = node("Reshape", x, graph.constant((0, 0, -1), np.int64))
        graph.output(node("Transpose", x, perm=(0, 2, 1)), (1, "M", config.feature_dim))
        return graph

    def pair(self, name: str) -> tuple[str, str]:
        weight, bias = (self.graph.weight(name + part, self.weights[name + part]) for part in ("weight", "bias"))
        return weight, bias

    def norm(self, x: str, name: str) -> str:
        epsilon = float(self.config.values["layer_norm_eps"])
        return self.graph.node("LayerNormalization", x, *self.pair(f"{name}."), epsilon=epsilon)

    def scaled(self, x: str, name: str) -> str:
        return self.graph.node("Mul", x, self.graph.weight(f"{name}.gamma", self.weights[f"{name}.gamma"]))

    def linear(self, x: str, name: str) -> str:  # [N, in] → [N, out]
        graph, node = self.graph, self.graph.node
        bias = graph.weight(f"{name}bias", self.weights[f"{name}bias"])
        weight = self.weights[f"{name}weight"].T
        if not self.int8:
            return node("Add", node("MatMul", x, graph.weight(f"{name}weight", weight)), bias)
        scales = np.maximum(np.abs(weight).max(0), np.float32(1e-12)) / np.float32(LEVELS)  # [out]
        rounded = graph.weight(f"{name}weight", np.rint(weight / scales).astype(np.int8))
        quantised = node("DynamicQuantizeLinear", x, outputs=3)
        _, scale, zero = graph.more(quantised, 3)
        sums = node("Cast", node("MatMulInteger", quantised, rounded, zero), to=1)
        scale = node("Mul", scale, graph.weight(f"{name}scale", scales))
        return node("Add", node("Mul", sums, scale), bias)

    def attention(self, x: str, block: str) -> str:  # [N, W]
        graph, node = self.graph, self.graph.node
        joined = self.linear(x, f"{block}.attn.in_proj_")  # [N, 3 W]
        divided = node("Reshape", joined, graph.constant((0, 3, -1, self.config.head), np.int64))
        q = node("Split", node("Transpose", divided, perm=(1, 2, 0, 3)), outputs=3, axis=0, num_outputs=3)
        q, k, v = graph.more(q, 3)  # [1, heads, N, head] each
        q = node("Mul", self.rotated(q), graph.constant(self.config.head**-0.5))
        k = node("Transpose", self.rotated(k), perm=(0, 1, 3, 2))
        mixed = node("MatMul", node("Softmax", node("MatMul", q, k), axis=-1), v)
        mixed = node("Transpose", mixed, perm=(0, 2, 1, 3))
        flat = node("Reshape", mixed, graph.constant((-1, self.config.width), np.int64))
        return self.scaled(self.linear(flat, f"{block}.attn.out_proj."), f"{block}.ls_1")

    def rotated(self, x: str) -> str:
        """Rotate pairs of adjacent numbers [1, heads, N, head]: first all first ones come out, then all second ones.

        Queries and keys have the same order then, which their products do not see.
        """
        graph, node = self.graph, self.graph.node
        pairs = node("Reshape", x, graph.constant((0, 0, 0, -1, 2), np.int64))
        a = node("Split", pairs, outputs=2, axis=4, num_outputs=2)
        a, b = (node("Squeeze", one, graph.constant([4], np.int64)) for one in graph.more(a, 2))
        first = node("Sub", node("Mul", a, self.cos), node("Mul", b, self.sin))
        second = node("Add", node("Mul", b, self.cos), node("Mul", a, self.sin))
        return node("Concat", first, second, axis=3)
