"""A second implementation of the EfficientNet-Lite2 tower, to check the first one against.

    pixels ─┬─ stem ─ blocks ─┬─ head ─ means of 2 × 2 ─┬─────── concepts ─ joined ─ features
    [3, S, S]                 │                         └─ joined ─ adapter ┘        [N, D]
            │                 ├─ after block 14 ─┬─ detail ──┘
            └─ means of 2 × 2, four times ───────┘

Promises to share no code with `tofc`: stored tensors as they are, what is a block's shape read from them, everything in
float64, one view at a time. tests/lab/test_pretrained_trunk.py checks the trunk against the package that published it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ReadTensor = Callable[[str], Tensor]  # stored name, without "vision_model." → tensor
BLOCKS = 21
HALVED = (1, 4, 7, 15)  # blocks that halve the map
DETAIL = 14  # the block whose map the detail branch reads


def features(read_stored: ReadTensor, pixels: Tensor) -> Tensor:
    """Return the features [N, D] of a view [3, S, S] in float64, row by row."""

    def convolve(x: Tensor, name: str, step: int = 1, pads: tuple[int, int] | None = None) -> Tensor:
        weight = read_stored(f"{name}.weight").double()
        bias = None if name == "detail_colours" else read_stored(f"{name}.bias").double()
        kernel = weight.shape[-1]
        if pads is None:  # TensorFlow's "same": what is left over goes to the right and to the bottom
            whole = max((x.shape[-1] + step - 1) // step * step - step + kernel - x.shape[-1], 0)
            pads = (whole // 2, whole - whole // 2)
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        return F.conv2d(F.pad(x, pads * 2), weight, bias, step, groups=groups)

    def halved(x: Tensor) -> Tensor:  # at an odd edge, the mean of what is there
        odd = x.shape[-1] % 2
        sums, counts = (F.avg_pool2d(F.pad(one, (0, odd, 0, odd)), 2) for one in (x, torch.ones_like(x)))
        return sums / counts

    def cap(x: Tensor) -> Tensor:
        return x.clamp(0, 6)

    x = cap(convolve(pixels.double()[None], "trunk.stem", 2))
    fine = x
    for block in range(BLOCKS):
        name, inner = f"trunk.blocks.{block}", x
        if block:
            inner = cap(convolve(inner, f"{name}.expand"))
        inner = cap(convolve(inner, f"{name}.depthwise", 2 if block in HALVED else 1))
        inner = convolve(inner, f"{name}.project")
        x = x + inner if inner.shape == x.shape else inner
        if block == DETAIL:
            fine = x
    coarse = cap(convolve(x, "trunk.head"))
    hues = pixels.double()[None]
    for _ in range(4):
        hues = halved(hues)
    fine = convolve(fine, "detail.0", 2, (1, 1)) + convolve(hues, "detail_colours", 2, (1, 1))
    fine = convolve(fine * (1 + torch.erf(fine / 2**0.5)) / 2, "detail.2", 2, (1, 1))  # GELU between
    coarse = halved(coarse)
    shown = coarse[0].flatten(1).T @ read_stored("concepts.0.weight").double().T
    named = (shown + read_stored("concepts.0.bias").double()).softmax(-1)
    rows = torch.cat((coarse, fine), 1)[0].flatten(1).T
    for layer in ("adapter.0", "adapter.2"):
        rows = rows @ read_stored(f"{layer}.weight").double().T + read_stored(f"{layer}.bias").double()
        rows = rows * (1 + torch.erf(rows / 2**0.5)) / 2 if layer == "adapter.0" else rows
    return torch.cat((named @ read_stored("concepts.2.weight").double().T, rows), 1)
