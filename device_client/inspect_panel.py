"""One view on the map of `inspect`: its picture, tinted by regions of cells, with borders and labels.

Promises that regions with equal owners have equal colours, that numbers are drawn only in cells where they can be read,
and that a cluster of several pieces is labelled so. Leaves what colours and labels mean to `inspect`.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tofc.codec.codec import Explanation
from tofc.model.views import View

INK = (32, 33, 36)
_WHITE = (255, 255, 255)
_MIN_CELL = 22  # px: numbers in smaller cells could not be read
# Few bits → many bits: light to dark, also in greyscale and for colour-blind people (cividis).
_SCALE = np.array(
    [(255, 234, 70), (203, 186, 105), (148, 142, 119), (102, 105, 112), (48, 77, 107), (0, 34, 78)], np.float64
)
_GOLDEN_RATIO = 0.618034  # of the circle of hues: classes that follow each other look different


@dataclass(frozen=True, kw_only=True, eq=False)
class Regions:
    """What a panel shows: which owner each cell has, and how each owner looks."""

    owner: NDArray[np.int64]  # [G, G], 0..k−1
    colours: NDArray[np.uint8]  # [k, 3]
    labels: Sequence[str]  # k; of several lines, those that fit in a cell are drawn
    strength: float  # 0: the picture alone, 1: the colours alone
    centres: NDArray[np.int64] | None = None  # [k] cells; an owner's other pieces have their label in brackets


def by_bits(explained: Explanation, span: tuple[float, float]) -> Regions:
    """Return the clusters of a view, coloured by their bits: `span` are the fewest and the most."""
    labels = [f"{bits:.0f}" for bits in explained.feature_bits]
    if explained.experts is not None:
        labels = [f"{label}\ne{expert}" for label, expert in zip(labels, explained.experts, strict=True)]
    if explained.stage_bits is not None and explained.stage_bits.shape[1] > 1:
        stages = ["+".join(f"{bits:.0f}" for bits in row) for row in explained.stage_bits]
        labels = [f"{label}\n{each}" for label, each in zip(labels, stages, strict=True)]
    return Regions(
        owner=_grid(explained.merged.assignment),
        colours=bits_colours(explained.feature_bits, span),
        labels=labels,
        strength=0.38,
        centres=explained.merged.centres,
    )


def by_index(explained: Explanation, colours: dict[int, tuple[int, int, int]]) -> Regions:
    """Return the cells of a view, coloured by the index of their feature in the first codebook."""
    assert explained.indices is not None
    found, owner = np.unique(explained.indices[explained.merged.assignment, 0], return_inverse=True)
    return Regions(
        owner=_grid(owner),
        colours=np.array([colours[index] for index in found.tolist()], np.uint8),
        labels=[str(index) for index in found.tolist()],
        strength=0.6,
    )


def draw_panel(view: View, regions: Regions, side: int) -> Image.Image:
    """Draw a view, `side` px wide."""
    picture = view.image().resize((side, side), Image.Resampling.LANCZOS)
    owner, grid = regions.owner, len(regions.owner)
    tint = Image.fromarray(regions.colours[owner]).resize((side, side), Image.Resampling.NEAREST)
    picture = Image.blend(picture, tint, regions.strength)
    pen = ImageDraw.Draw(picture)
    edges = [round(cell * side / grid) for cell in range(grid + 1)]
    for colour, thick in ((INK, 5), (_WHITE, 2)):
        for row in range(grid):
            for column in range(grid):
                if column + 1 < grid and owner[row, column] != owner[row, column + 1]:
                    pen.line((edges[column + 1], edges[row], edges[column + 1], edges[row + 1]), colour, thick)
                if row + 1 < grid and owner[row, column] != owner[row + 1, column]:
                    pen.line((edges[column], edges[row + 1], edges[column + 1], edges[row + 1]), colour, thick)
    if side / grid >= _MIN_CELL:
        _draw_labels(pen, regions, side / grid)
    return picture


def _draw_labels(pen: ImageDraw.ImageDraw, regions: Regions, cell: float) -> None:
    size = min(20, round(0.36 * cell) + 2)
    for owner, cells in pieces(regions.owner):
        lines = regions.labels[owner].split("\n")
        at, large = cells[0], True
        if regions.centres is not None:
            # A cluster may have several pieces but is sent once: only the piece with its centre has a plain number.
            centre = divmod(int(regions.centres[owner]), len(regions.owner))
            large = centre in cells
            at = centre if large else at
        font = text_font(size if large else size - 4)
        fitting = [line for place, line in enumerate(lines) if place == 0 or font.getlength(line) < cell - 4]
        text = "\n".join(fitting if large else [f"({line})" for line in fitting])
        middle = ((at[1] + 0.5) * cell, (at[0] + 0.5) * cell)
        pen.text(middle, text, _WHITE, font, anchor="mm", align="center", stroke_width=2, stroke_fill=INK)


def pieces(owner: NDArray[np.int64]) -> list[tuple[int, list[tuple[int, int]]]]:
    """Find the connected pieces of owners [G, G]: (owner, its cells) in raster order."""
    found = []
    left = {(int(row), int(column)) for row, column in np.ndindex(owner.shape)}
    while left:
        first = min(left)
        left.remove(first)
        cells, cluster = [first], int(owner[first])
        for row, column in cells:  # the list grows during the loop
            for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if near in left and owner[near] == cluster:
                    left.remove(near)
                    cells.append(near)
        found.append((cluster, sorted(cells)))
    return found


def bits_colours(bits: NDArray[np.float64], span: tuple[float, float]) -> NDArray[np.uint8]:
    """Map bits [n] to colours [n, 3]."""
    at = np.clip((bits - span[0]) / (span[1] - span[0]), 0, 1) * (len(_SCALE) - 1)
    stops = np.arange(len(_SCALE))
    return np.stack([np.interp(at, stops, _SCALE[:, channel]) for channel in range(3)], axis=-1).astype(np.uint8)


def class_colour(rank: int) -> tuple[int, int, int]:
    """Return the colour of the class of this rank: neighbouring ranks differ in hue, and thirds of them in lightness.

    >>> len({class_colour(rank) for rank in range(300)})
    300
    """
    red, green, blue = colorsys.hls_to_rgb(rank * _GOLDEN_RATIO % 1, (0.5, 0.68, 0.34)[rank % 3], 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


def text_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font of the map."""
    return ImageFont.load_default(size)


def _grid(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    side = round(len(cells) ** 0.5)
    return cells.reshape(side, side)
