"""A linear layer in int8: half the memory of bfloat16, and faster on processors with int8 instructions.

Weights are quantised once, with a scale for each output; inputs in each call, with a scale for each token. Promises
sums in int32 and results in the input's dtype. Leaves accelerators out: it is for CPUs only.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 256  # tokens per product, so that the sums of 8 960 outputs stay in a core's cache
_MIN_SCALE = 1e-12  # avoids a division by 0 for rows of zeros


class Int8Linear(torch.nn.Module):
    """A copy of `linear` with int8 weights; `linear` can be deleted afterwards."""

    weight: Tensor  # int8 [in, out], as a view of [out, in]
    scale: Tensor  # [out]
    bias: Tensor  # [out]

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight, scale = _quantise(linear.weight.detach().float())
        self.register_buffer("weight", weight.T)
        self.register_buffer("scale", scale[:, 0])
        bias = torch.zeros(len(scale)) if linear.bias is None else linear.bias.detach().float()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:  # [..., in] → [..., out]
        blocks = [self._multiply(rows).to(x.dtype) for rows in x.flatten(0, -2).split(_ROWS)]
        y: Tensor = torch.cat(blocks).unflatten(0, x.shape[:-1])
        return y

    def _multiply(self, rows: Tensor) -> Tensor:
        rounded, scale = _quantise(rows.float())
        sums: Tensor = torch._int_mm(rounded, self.weight)  # int32; torchao uses it too
        return torch.addcmul(self.bias, sums * scale, self.scale)


def _quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise rows [R, C] to int8 [R, C]; also return the scale of each row [R, 1]."""
    scale = rows.abs().amax(1, keepdim=True).clamp_min_(_MIN_SCALE) / 127
    return (rows / scale).round_().to(torch.int8), scale
