"""Training pictures made of photographs: parts of them, mosaics, signs with words, and things of a known colour.

    photograph ─ crop, mirror, change of light ─┬─────────────────────────────→ picture 336 × 336, what is known
                                                ├─ a second to ninth beside it ─┤
                                                ├─ a sign with words ───────────┤
                                                └─ patches of one colour ───────┘

Promises that a picture depends only on the assets and on `(seed, split, index)`. Leaves features to `features` and
questions to `questions`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from tofc_lab.photo import assets, colours
from tofc_lab.photo.assets import Split
from tofc_lab.photo.signs import Sign, add_sign

SIZE = 336  # px
GRID = 6  # cells a side: those of the tower's features
CELL = SIZE / GRID


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A thing of one colour: the name of the colour, and the cells that it covers."""

    colour: str
    cells: tuple[int, ...]


@dataclass(kw_only=True)
class Picture:
    """A picture and what is known of it; `parts` is the number of photographs in it."""

    image: Image.Image
    parts: int = 1
    sign: Sign | None = None
    patches: list[Patch] = field(default_factory=list)


def draw(folder: Path, split: Split, seed: int, index: int) -> Picture:
    """Draw picture `index` of a split."""
    rng = np.random.default_rng([seed, assets.SPLITS.index(split), index])
    kind = rng.random()
    if kind < 0.40:
        picture = Picture(image=_part(rng, folder, split, (SIZE, SIZE)))
        picture.sign = add_sign(rng, folder, picture.image)
    elif kind < 0.60:
        picture = Picture(image=_part(rng, folder, split, (SIZE, SIZE)))
        _add_patches(rng, picture)
    elif kind < 0.75:
        picture = _mosaic(rng, folder, split)
    else:
        picture = Picture(image=_part(rng, folder, split, (SIZE, SIZE)))
    if rng.random() < 0.3:
        picture.image = _worse(rng, picture.image)
    return picture


def _part(rng: np.random.Generator, folder: Path, split: Split, size: tuple[int, int]) -> Image.Image:
    """Return a random part of a random photograph at this size, sometimes mirrored, in another light."""
    pool = assets.photographs(folder, split)
    photograph = pool[int(rng.integers(len(pool)))]
    share, aspect = rng.uniform(0.25, 1.0), np.exp(rng.uniform(-0.4, 0.4))
    height = share * min(photograph.height, photograph.width / aspect)
    width = height * aspect
    left, top = rng.uniform(0, photograph.width - width), rng.uniform(0, photograph.height - height)
    part = photograph.resize(size, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.5:
        part = ImageEnhance.Brightness(part).enhance(float(rng.uniform(0.6, 1.3)))
        part = ImageEnhance.Color(part).enhance(float(rng.uniform(0.4, 1.5)))
    if rng.random() < 0.25:  # another hue: few photographs show many colours
        hue, *rest = part.convert("HSV").split()
        turn = int(rng.integers(256))
        part = Image.merge("HSV", (hue.point(lambda value: (value + turn) % 256), *rest)).convert("RGB")
    return part


def _mosaic(rng: np.random.Generator, folder: Path, split: Split) -> Picture:
    """Return two to nine photographs in rows and columns."""
    rows, columns = ((1, 2), (2, 1), (2, 2), (2, 2), (2, 3), (3, 3))[int(rng.integers(6))]
    image = Image.new("RGB", (SIZE, SIZE))
    width, height = SIZE // columns, SIZE // rows
    for number in range(rows * columns):
        part = _part(rng, folder, split, (width, height))
        image.paste(part, (number % columns * width, number // columns * height))
    return Picture(image=image, parts=rows * columns)


def place(rng: np.random.Generator, taken: NDArray[np.bool_], most: int) -> tuple[int, ...] | None:
    """Return the cells of a free rectangle, of at most `most` cells a side, with a gap to others; None without room."""
    high, wide = (int(value) for value in rng.integers(1, most + 1, size=2))
    row, column = int(rng.integers(GRID - high + 1)), int(rng.integers(GRID - wide + 1))
    if taken[max(0, row - 1) : row + high + 1, max(0, column - 1) : column + wide + 1].any():
        return None
    taken[row : row + high, column : column + wide] = True
    return tuple(r * GRID + c for r in range(row, row + high) for c in range(column, column + wide))


def _add_patches(rng: np.random.Generator, picture: Picture) -> None:
    """Give some regions of the picture a colour, with the light and shade that they had."""
    taken = np.zeros((GRID, GRID), bool)
    for _ in range(int(rng.integers(1, 5))):
        if (cells := place(rng, taken, 3)) is None:
            continue
        (row, column), (last_row, last_column) = divmod(cells[0], GRID), divmod(cells[-1], GRID)
        name = colours.COLOURS[int(rng.integers(len(colours.COLOURS)))]
        box = [column * CELL, row * CELL, (last_column + 1) * CELL - 1, (last_row + 1) * CELL - 1]
        box = [value + float(rng.uniform(-0.12, 0.12)) * CELL for value in box]
        mask = Image.new("L", (SIZE, SIZE))
        pen = ImageDraw.Draw(mask)
        shape = int(rng.integers(3))
        if shape == 0:
            pen.ellipse(box, fill=255)
        elif shape == 1:
            pen.rounded_rectangle(box, radius=float(rng.uniform(2, 30)), fill=255)
        else:
            angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
            centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            reach = rng.uniform(0.75, 1.1, 7)
            points = [
                (
                    centre[0] + float(np.cos(a) * r) * (box[2] - box[0]) / 2,
                    centre[1] + float(np.sin(a) * r) * (box[3] - box[1]) / 2,
                )
                for a, r in zip(angles, reach, strict=True)
            ]
            pen.polygon(points, fill=255)
        mask = mask.filter(ImageFilter.GaussianBlur(1.2))
        grey = np.asarray(picture.image.convert("L"), np.float32)
        strength = float(rng.uniform(0.1, 0.45)) * (0.4 if name in {"white", "black"} else 1.0)
        light = 1 + strength * np.clip((grey - grey.mean()) / (grey.std() + 8), -1.5, 1.5)
        paint = np.clip(light[..., None] * np.array(colours.draw(rng, name), np.float32), 0, 255)
        picture.image.paste(Image.fromarray(paint.astype(np.uint8)), (0, 0), mask)
        picture.patches.append(Patch(colour=name, cells=cells))


def _worse(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Return the picture blurred or with noise."""
    if rng.random() < 0.5:
        return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 1.3))))
    noisy = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(3, 12), (SIZE, SIZE, 1))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
