"""STEP3-VL's vision tower in numpy: pixels [B, 3, S, S] → features [B, N, 4 × width], in float32, without torch.

Promises the computation of `perception_encoder` with rounding errors of float32, and intermediate results that hold a
block of tokens, never a whole view's MLP or attention. Weights stored in float32 stay memory-mapped; others are
converted when they are loaded (10 ms for nano: faster than reading a copy twice as large). Leaves choosing between this
tower and torch's to `vision_tower`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tofc.blas_threads import set_blas_threads
from tofc.model.checkpoint import Checkpoint
from tofc.model.perception_encoder_config import ROPE_THETA
from tofc.model.released_names import VISION
from tofc.model.resources import require_memory
from tofc.model.vision_tower import check_pixels

Array = NDArray[np.float32]
BLOCK = 256  # tokens: the inner numbers of a block stay in a core's cache
_BLOCKS = "transformer.resblocks."


class NumpyTower:
    """A loaded tower. Safe to use from one thread at a time.

    >>> from tofc.model.shipped import NANO
    >>> tower = NumpyTower(Checkpoint.open(NANO, side="device"))
    >>> tower.encode(np.zeros((1, 3, 336, 336), np.float32)).shape
    (1, 36, 768)
    """

    def __init__(self, checkpoint: Checkpoint, threads: int = 1) -> None:
        """Load the tower's tensors in float32. Raises `ResourceError` if they do not fit into memory.

        `threads`: how many the matrix products of `encode` use; the rest of it uses one.
        """
        self._threads = threads
        self.config = checkpoint.config
        stored = {name: one for name, one in checkpoint.stored.items() if name.startswith(VISION)}
        copied = sum(math.prod(one.shape) for one in stored.values() if one.dtype != "F32")
        require_memory(4 * copied, "the vision tower in float32")
        vision = self.config.tower.values
        self._eps = np.float32(vision["layer_norm_eps"])
        self._head = int(vision["hidden_size"]) // int(vision["num_attention_heads"])
        weights = {name.removeprefix(VISION): one.mapped() for name, one in stored.items()}
        self._weights = {name: one for name, one in weights.items() if not name.startswith(_BLOCKS)}
        self._blocks: list[Mapping[str, Array]] = []
        for layer in range(int(vision["num_hidden_layers"])):
            prefix = f"{_BLOCKS}{layer}."
            names = [name for name in weights if name.startswith(prefix)]
            self._blocks.append({name.removeprefix(prefix): weights[name] for name in names})

    def at_once(self, side: int) -> int:
        """Return 1: more views together would take more memory and no less time."""
        return 1

    def encode(self, pixels: Array) -> Array:
        """Encode normalised pixels [B, 3, S, S] as features [B, N, D], row by row, N = `config.grid(S)` squared.

        Raises `UsageError` for another shape, or a side that is not a multiple of the patch size.
        """
        check_pixels(pixels, self.config.tower)
        set_blas_threads(self._threads)
        try:
            return np.stack([self._view(one) for one in pixels.astype(np.float32, copy=False)])
        finally:
            set_blas_threads(1)

    def _view(self, pixels: Array) -> Array:  # [3, S, S] → [N, D]
        w, patch = self._weights, self.config.tower.side_multiple
        side = pixels.shape[-1] // patch
        patches = pixels.reshape(3, side, patch, side, patch).transpose(1, 3, 0, 2, 4).reshape(side * side, -1)
        x = patches @ w["conv1.weight"].reshape(len(w["conv1.weight"]), -1).T  # [G², W]
        x = self._norm(x + position_table(w["positional_embedding"], side), w, "ln_pre")
        cos, sin = rotary_tables(side, self._head)
        for block in self._blocks:
            x += self._attend(self._norm(x, block, "ln_1"), block, cos, sin)
            for at in range(0, len(x), BLOCK):
                rows = x[at : at + BLOCK]
                rows += _mlp(self._norm(rows, block, "ln_2"), block)
        image: Array = x.reshape(side, side, -1)  # [H, W, C]
        for name in ("vit_downsampler1", "vit_downsampler2"):
            image = _downsample(image, w[f"{name}.weight"], w[f"{name}.bias"])
        features: Array = image.reshape(-1, image.shape[-1])
        return features

    def _norm(self, x: Array, weights: Mapping[str, Array], name: str) -> Array:
        centred: Array = x - x.mean(-1, keepdims=True)
        variance = np.einsum("nw,nw->n", centred, centred) / np.float32(x.shape[-1])
        centred /= np.sqrt(variance + self._eps)[:, None]
        centred *= weights[f"{name}.weight"]
        centred += weights[f"{name}.bias"]
        return centred

    def _attend(self, x: Array, w: Mapping[str, Array], cos: Array, sin: Array) -> Array:  # [N, W]
        joined = _linear(x, w["attn.in_proj_weight"], w["attn.in_proj_bias"])
        q, k, v = joined.reshape(len(x), 3, -1, self._head).transpose(1, 2, 0, 3)  # [heads, N, head] each
        q = _rotate(q, cos, sin) * np.float32(self._head**-0.5)
        k = _rotate(k, cos, sin)
        mixed = np.empty_like(x).reshape(len(x), -1, self._head)  # [N, heads, head]
        for head in range(len(q)):
            keys, values = k[head].T, np.ascontiguousarray(v[head])
            for at in range(0, len(x), BLOCK):
                scores = q[head, at : at + BLOCK] @ keys  # [block, N]
                scores -= scores.max(-1, keepdims=True)
                np.exp(scores, out=scores)
                block = scores @ values
                block /= scores.sum(-1, keepdims=True)
                mixed[at : at + BLOCK, head] = block
        found = _linear(mixed.reshape(x.shape), w["attn.out_proj.weight"], w["attn.out_proj.bias"])
        found *= w["ls_1.gamma"]
        return found


def _linear(x: Array, weight: Array, bias: Array) -> Array:  # [N, in], [out, in], [out] → [N, out]
    found: Array = x @ weight.T
    found += bias
    return found


def _mlp(x: Array, w: Mapping[str, Array]) -> Array:  # [n, W]
    inner = _linear(x, w["mlp.c_fc.weight"], w["mlp.c_fc.bias"])
    gate = inner * np.float32(-1.702)  # quick GELU: inner / (1 + exp(-1.702 inner))
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the quotient 0
        np.exp(gate, out=gate)
    gate += np.float32(1)
    inner /= gate
    found = _linear(inner, w["mlp.c_proj.weight"], w["mlp.c_proj.bias"])
    found *= w["ls_2.gamma"]
    return found


def rotary_tables(side: int, head: int) -> tuple[Array, Array]:
    """Return cosines and sines [side², head / 2] of 2-D rotary embeddings, as `perception_encoder.rotary_angles`."""
    half = head // 2
    frequencies = np.float32(1) / np.float32(ROPE_THETA) ** (np.arange(0, half, 2, dtype=np.float32) / np.float32(half))
    row, column = np.divmod(np.arange(side * side), side)
    angles = np.concatenate([at.astype(np.float32)[:, None] * frequencies for at in (column, row)], 1)
    return np.cos(angles), np.sin(angles)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:  # [heads, N, head]: pairs of adjacent numbers
    a, b = x[..., ::2], x[..., 1::2]
    found = np.empty(x.shape, np.float32)
    found[..., ::2] = a * cos - b * sin
    found[..., 1::2] = b * cos + a * sin
    return found


def position_table(table: Array, side: int) -> Array:
    """Resize position embeddings [native², W] to [side², W]: bilinear, as torch's `align_corners=False`."""
    native = math.isqrt(len(table))
    if side == native:
        return table
    at = (np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(native / side) - np.float32(0.5)
    at = at.clip(0)
    low = at.astype(np.int64)
    high = np.minimum(low + 1, native - 1)
    part = (at - low.astype(np.float32))[:, None]
    square = table.reshape(native, native, -1)
    columns = square[:, low] * (1 - part) + square[:, high] * part  # [native, side, W]
    found: Array = columns[low] * (1 - part[:, None]) + columns[high] * part[:, None]
    return found.reshape(side * side, -1)


def _downsample(x: Array, weight: Array, bias: Array) -> Array:
    """Convolve [H, W, C] → [⌈H/2⌉, ⌈W/2⌉, C'] with kernel 3, stride 2 and padding 1, as a matrix product."""
    height, width, channels = x.shape
    padded = np.zeros((height + 2, width + 2, channels), np.float32)
    padded[1:-1, 1:-1] = x
    windows: Any = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1))[::2, ::2]  # [H', W', C, 3, 3]
    patches = windows.reshape(windows.shape[0] * windows.shape[1], -1)  # in the order of the weights: no copy of them
    found: Array = _linear(patches, weight.reshape(len(weight), -1), bias).reshape(*windows.shape[:2], -1)
    return found
