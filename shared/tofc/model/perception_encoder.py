"""The Perception Encoder of STEP3-VL in plain torch: pixels [B, 3, S, S] → features [B, N, 4 × width].

Promises the published computation (Perception Encoder, arXiv 2504.13181; STEP3-VL-10B, arXiv 2601.09668) for any
square view whose side is a multiple of the patch. It is written here because it must not depend on a version of another
package: no error would show that two machines compute it differently. On a CPU, and `in_blocks`, its widest tensors
hold a block of tokens, never a whole view; elsewhere blocks would only multiply the kernels to launch. Leaves weights
to `tower`.

    pixels ─ conv1 ─ + positions ─ ln_pre ─ L × (attention with 2-D RoPE, MLP) ─ conv ½ ─ conv ½ ─ features
             14 px     interpolated                                              [B, 13·13, 6144] of 728 px
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tofc.model.perception_encoder_config import ROPE_THETA

BLOCK = 676  # tokens: a quarter of a view of 728 px
_scarce: ContextVar[bool] = ContextVar("tofc_tower_in_blocks", default=False)


class PerceptionEncoder(nn.Module):
    """The tower. Its parameters have the released names, except that `in_proj` is split in three (`released_names`)."""

    def __init__(self, vision: Mapping[str, Any]) -> None:
        """Build the network of a `PerceptionEncoderConfig`'s values, with random weights."""
        super().__init__()
        width, patch = int(vision["hidden_size"]), int(vision["patch_size"])
        eps = float(vision["layer_norm_eps"])
        self.head = width // int(vision["num_attention_heads"])
        self.conv1 = nn.Conv2d(int(vision["num_channels"]), width, patch, patch, bias=False)
        self.positional_embedding = nn.Parameter(torch.zeros((int(vision["image_size"]) // patch) ** 2, width))
        self.ln_pre = nn.LayerNorm(width, eps)
        blocks = [_Block(vision, width, self.head, eps) for _ in range(int(vision["num_hidden_layers"]))]
        self.transformer = _Transformer(blocks)
        self.vit_downsampler1 = _Downsampler(width, 2 * width, 3, stride=2, padding=1)
        self.vit_downsampler2 = _Downsampler(2 * width, 4 * width, 3, stride=2, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:  # [B, 3, S, S] → [B, N, D], row by row
        """Compute the features of views."""
        x = self.conv1(pixels)  # [B, W, G, G]
        side = x.shape[-1]
        x = self.ln_pre(x.flatten(2).transpose(1, 2) + self._positions(side))  # [B, G², W]
        angles = rotary_angles(side, self.head)
        cos, sin = (one.to(x.device)[:, None] for one in (angles.cos(), angles.sin()))
        for block in self.transformer.resblocks:
            x = block(x, cos, sin)
        x = x.transpose(1, 2).unflatten(-1, (side, side))
        found: Tensor = self.vit_downsampler2(self.vit_downsampler1(x))
        return found.flatten(2).transpose(1, 2)

    def _positions(self, side: int) -> Tensor:
        native = math.isqrt(len(self.positional_embedding))
        if side == native:
            return self.positional_embedding
        table = self.positional_embedding.unflatten(0, (native, native)).permute(2, 0, 1)[None]
        return F.interpolate(table, size=(side, side), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


def rotary_angles(side: int, head: int) -> Tensor:
    """Compute the angles of 2-D rotary embeddings, float32 [side², head / 2] for heads of width `head`, on the CPU.

    Each angle is that of a pair of adjacent numbers in a head: the first half of the pairs rotates by the column, the
    second by the row. Pair i of a half has the angle position × 10000^(−2i / (head / 2)).
    """
    half = head // 2
    frequencies = 1 / float(ROPE_THETA) ** (torch.arange(0, half, 2, dtype=torch.float32, device="cpu") / half)
    cells = torch.arange(side * side, device="cpu")
    column, row = cells % side, cells // side
    return torch.cat((column[:, None] * frequencies, row[:, None] * frequencies), 1)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [B, N, heads, head], twice [N, 1, head / 2]
    """Rotate each pair of adjacent numbers by its angle, in float32, block by block: it takes six copies of a block."""
    blocks = []
    size = block_tokens(x)
    for block, c, s in zip(x.split(size, 1), cos.split(size), sin.split(size), strict=True):
        a, b = block.float().unflatten(-1, (-1, 2)).unbind(-1)
        blocks.append(torch.stack((a * c - b * s, b * c + a * s), -1).flatten(-2).to(x.dtype))
    return torch.cat(blocks, 1)


def block_tokens(x: Tensor) -> int:  # [B, N, …]
    """Return how many tokens are computed at once: a block on a CPU and `in_blocks`, else all."""
    return BLOCK if x.device.type == "cpu" or _scarce.get() else x.shape[1]


@contextmanager
def in_blocks() -> Iterator[None]:
    """Compute blocks of tokens on every device in a `with` block, where memory is scarce."""
    before = _scarce.set(True)
    try:
        yield
    finally:
        _scarce.reset(before)


class _Transformer(nn.Module):
    def __init__(self, blocks: list[_Block]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(blocks)


class _Block(nn.Module):
    def __init__(self, vision: Mapping[str, Any], width: int, head: int, eps: float) -> None:
        super().__init__()
        scale = float(vision["layer_scale_init_value"])
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.ls_1, self.ls_2 = _Scale(width, scale), _Scale(width, scale)
        self.attn = _Attention(width, head)
        self.mlp = _Mlp(width, int(width * vision["mlp_ratio"]))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [B, N, W]
        x = x + self.ls_1(self.attn(self.ln_1(x), cos, sin))
        found: Tensor = x + self.ls_2(self.mlp(self.ln_2(x)))
        return found


class _Scale(nn.Module):
    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


class _Attention(nn.Module):
    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [B, N, W]
        heads = (-1, self.head)
        q, k, v = (project(x).unflatten(-1, heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        mixed = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        found: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return found


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # [B, heads, N, head] each
    """Compute attention: fused, except in training, where torch's fused backward pass is slow in bfloat16."""
    if not q.requires_grad:
        return F.scaled_dot_product_attention(q, k, v)
    weights: Tensor = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1, dtype=torch.float32)
    return weights.to(v.dtype) @ v


class _Mlp(nn.Module):
    """The MLP of a block. Its widest tensors (8 960 numbers a token) hold a block of tokens, not a view of 728 px."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:  # [B, N, W]
        return torch.cat([self.c_proj(quick_gelu(self.c_fc(block))) for block in x.split(block_tokens(x), 1)], 1)


def quick_gelu(x: Tensor) -> Tensor:
    """Approximate GELU as CLIP does."""
    return x * torch.sigmoid(1.702 * x)


class _Downsampler(nn.Conv2d):
    """A convolution with kernel 3, stride 2 and padding 1, computed as a matrix product.

    On a CPU, `Conv2d` would make a reordered copy of its weights in every call: 0.34 GB for the released tower in
    bfloat16.
    """

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] → [B, C', ⌈H/2⌉, ⌈W/2⌉]
        assert self.bias is not None
        patches = F.unfold(x, 3, padding=1, stride=2)  # [B, 9C, N]
        weight = self.weight.flatten(1).expand(len(x), -1, -1)
        found: Tensor = torch.baddbmm(self.bias[:, None], weight, patches)  # [B, C', N]
        batch, _, height, width = x.shape
        return found.reshape(batch, -1, (height + 1) // 2, (width + 1) // 2)
