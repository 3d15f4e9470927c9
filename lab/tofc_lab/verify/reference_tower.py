"""A second implementation of the vision tower, from the published rules alone, to check the first one against.

Promises to share no code with `tofc` and no network with transformers: released tensors as they are stored, `in_proj`
unsplit, interleaved 2-D RoPE, everything in float64, one view at a time. Each tensor is read when it is needed, so that
memory is needed only for the largest layer. It is slow.

    pixels ─ conv1 ─ + positions ─ ln_pre ─ blocks ─ vit_downsampler1 ─ vit_downsampler2 ─ features
    [3, S, S]       [G², W]                          [2 W, G/2, G/2]    [4 W, G/4, G/4]    [N, 4 W]
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ReadTensor = Callable[[str], Tensor]  # released name, without "vision_model." → tensor
THETA = 10_000.0


def features(read_stored: ReadTensor, pixels: Tensor, *, heads: int, layers: int) -> Tensor:
    """Return the features [N, D] of a view [3, S, S] in float64, row by row."""

    def read(name: str) -> Tensor:
        return read_stored(name).double()

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], read(f"{name}.weight"), read(f"{name}.bias"), 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ read(f"{name}.weight").T + read(f"{name}.bias")

    patches = read("conv1.weight")  # [W, 3, P, P]
    width, patch = patches.shape[0], patches.shape[-1]
    x = F.conv2d(pixels.double()[None], patches, stride=patch)[0]  # [W, G, G]
    side = x.shape[-1]
    native = math.isqrt(len(read_stored("positional_embedding")))
    positions = read("positional_embedding").T.reshape(1, width, native, native)
    x = x + F.interpolate(positions, size=(side, side), mode="bilinear", align_corners=False)[0]
    x = norm(x.flatten(1).T, "ln_pre")  # [G², W]
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}"
        y = norm(x, f"{block}.ln_1") @ read(f"{block}.attn.in_proj_weight").T + read(f"{block}.attn.in_proj_bias")
        q, k, v = (part.reshape(side * side, heads, -1).transpose(0, 1) for part in y.chunk(3, 1))
        q, k = rotated(q, side), rotated(k, side)
        # one head after the other: the attention of all heads for a 728 px view would take a gigabyte
        attended = [(a @ b.T / math.sqrt(width // heads)).softmax(-1) @ c for a, b, c in zip(q, k, v, strict=True)]
        y = linear(torch.cat(attended, 1), f"{block}.attn.out_proj")
        x = x + read(f"{block}.ls_1.gamma") * y
        y = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        y = linear(y * torch.sigmoid(1.702 * y), f"{block}.mlp.c_proj")  # quick GELU
        x = x + read(f"{block}.ls_2.gamma") * y
    x = x.T.reshape(1, width, side, side)
    for name in ("vit_downsampler1", "vit_downsampler2"):
        x = F.conv2d(x, read(f"{name}.weight"), read(f"{name}.bias"), stride=2, padding=1)
    return x[0].flatten(1).T


def rotated(x: Tensor, side: int) -> Tensor:
    """Apply interleaved 2-D RoPE: the first half of a head is rotated by the column, the second by the row.

    `x` is [heads, side², width]; pair i of a half is rotated by position × 10000^(−2i / (width / 2)).
    """
    half = x.shape[-1] // 2
    rates = THETA ** (-torch.arange(0, half, 2).double() / half)
    cells = torch.arange(side * side)
    angles = torch.cat([(cells % side)[:, None] * rates, (cells // side)[:, None] * rates], 1)  # [side², width / 2]
    turned = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2)
