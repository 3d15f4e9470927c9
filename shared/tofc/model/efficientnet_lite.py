"""EfficientNet-Lite2 as a vision tower, in plain torch: pixels [B, 3, S, S] → features [B, N, D].

    pixels ─┬─ trunk ─┬─ head map, stride 32 ─ means of 2 × 2 ─┬─ concepts: Linear, softmax, Linear ─┐
            │         │   [B, 1280, ⌈S/32⌉, ⌈S/32⌉]            └─┐                                   ├─ features
            │         └─ stride 16 ─ conv ½ ─┬─ + ─ GELU ─ conv ½ ─┴─ adapter: Linear, GELU, Linear ─┘   [B, N, D]
            │             [B, 120, ⌈S/16⌉, …]│     detail: [B, W, ⌈S/64⌉, ⌈S/64⌉]
            └─ means of 16 × 16 px ─ conv ½ ─┘
                [B, 3, ⌈S/16⌉, …]

Promises the published trunk (EfficientNet-Lite2 of google-research, without squeeze-and-excitation, with ReLU6) for any
side S: TensorFlow's "same" padding is that of the size in use, and batch normalisation is folded into the convolutions.
The map at stride 16 gives the detail that the head's map lacks, the means of the pixels its colours. What a cell shows
clearly, one of K concepts, is the same C numbers however strongly it shows it: few vectors, that a codec indexes in
some bits; the adapter gives the other D − C numbers. Leaves weights to `tower`, and the trunk's pretrained ones to the
lab.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tofc.model.efficientnet_lite_config import COLOUR_POOLS, COLOURS, DETAIL, DETAIL_BLOCKS, HEAD, STEM, Block, blocks


class Adapter(nn.Module):
    """What is behind the trunk, the detail branch and the adapter: the trained part, the trunk is frozen."""

    def __init__(self, vision: Mapping[str, Any]) -> None:
        """Build the network with random weights; `vision` gives the widths of `EfficientNetLite2Config`."""
        super().__init__()
        detail, adapter, out = (int(vision[f"{name}_width"]) for name in ("detail", "adapter", "output"))
        concepts, code = int(vision["concept_width"]), int(vision["code_width"])
        self.detail = nn.Sequential(
            nn.Conv2d(DETAIL, detail, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(detail, detail, 3, stride=2, padding=1),
        )
        self.detail_colours = nn.Conv2d(COLOURS, detail, 3, stride=2, padding=1, bias=False)
        self.adapter = nn.Sequential(nn.Linear(HEAD + detail, adapter), nn.GELU(), nn.Linear(adapter, out - code))
        self.concepts = nn.Sequential(nn.Linear(HEAD, concepts), nn.Softmax(-1), nn.Linear(concepts, code, bias=False))

    def adapt(self, head: Tensor, middle: Tensor, colours: Tensor) -> Tensor:
        """Compute features [B, N, D] from the head's cells [B, N, 1280], its map at stride 16 and `colours`."""
        first, *rest = self.detail
        detail = first(middle) + self.detail_colours(colours)
        for layer in rest:
            detail = layer(detail)
        return torch.cat((self.concepts(head), self.adapter(torch.cat((head, cells(detail)), -1))), -1)


class EfficientNetLite2Tower(Adapter):
    """The tower: the trunk, and what is behind it."""

    def __init__(self, vision: Mapping[str, Any]) -> None:
        """Build the network with random weights, of the widths that `vision` gives."""
        super().__init__(vision)
        self.trunk = Trunk()

    def forward(self, pixels: Tensor) -> Tensor:  # [B, 3, S, S] → [B, N, D], row by row
        """Compute the features of views, pixels normalised as (x − 127) / 128."""
        middle, last = self.trunk(pixels)
        return self.adapt(cells(means(last)), middle, colours(pixels))


def means(grid: Tensor) -> Tensor:
    """Return the means [B, C, ⌈H/2⌉, ⌈W/2⌉] of 2 × 2 cells of a map [B, C, H, W]."""
    return F.avg_pool2d(grid, 2, ceil_mode=True, count_include_pad=False)


def colours(pixels: Tensor) -> Tensor:
    """Return the means [B, 3, ⌈S/16⌉, ⌈S/16⌉] of pixels [B, 3, S, S]: the trunk's maps tell shapes, but not colours."""
    for _ in range(COLOUR_POOLS):
        pixels = means(pixels)
    return pixels


def cells(grid: Tensor) -> Tensor:
    """Return a map [B, C, G, G] as its cells [B, G², C], row by row."""
    return grid.flatten(2).transpose(1, 2)


class Trunk(nn.Module):
    """The pretrained part, up to the classifier's pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Convolution(3, STEM, 3, stride=2)
        each = list(blocks())
        self.blocks = nn.ModuleList(_Block(one) for one in each)
        self.head = _Convolution(each[-1].out, HEAD, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:  # [B, 3, S, S]
        """Return the map at stride 16 [B, 120, ⌈S/16⌉, ⌈S/16⌉] and the head's [B, 1280, ⌈S/32⌉, ⌈S/32⌉]."""
        x = F.relu6(self.stem(pixels))
        for block in self.blocks[:DETAIL_BLOCKS]:
            x = block(x)
        middle = x
        for block in self.blocks[DETAIL_BLOCKS:]:
            x = block(x)
        return middle, F.relu6(self.head(x))


class _Block(nn.Module):
    """An inverted bottleneck: 1 × 1 to more channels, a filter for each channel, 1 × 1 to `out` channels."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.expand = _Convolution(block.width, block.inner, 1) if block.expansion > 1 else None
        self.depthwise = _Convolution(block.inner, block.inner, block.kernel, stride=block.stride, groups=block.inner)
        self.project = _Convolution(block.inner, block.out, 1)
        self.skips = block.skips

    def forward(self, x: Tensor) -> Tensor:
        inner = x if self.expand is None else F.relu6(self.expand(x))
        found: Tensor = self.project(F.relu6(self.depthwise(inner)))
        return x + found if self.skips else found


class _Convolution(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: [B, C, H, W] → [B, C', ⌈H / stride⌉, ⌈W / stride⌉]."""

    def __init__(self, width: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(width, out, kernel, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel == 1:
            return super().forward(x)
        before, after = zip(*(same_padding(side, kernel, stride) for side in x.shape[-2:]), strict=True)
        return super().forward(F.pad(x, (before[1], after[1], before[0], after[0])))


def same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return how many zeros are put before and after `side` numbers, so that ⌈side / stride⌉ come out.

    >>> same_padding(336, 3, 2), same_padding(21, 5, 2), same_padding(14, 5, 2)
    ((0, 1), (2, 2), (1, 2))
    """
    out = -(-side // stride)
    both = max((out - 1) * stride + kernel - side, 0)
    return both // 2, both - both // 2
