"""Pictures → views: the crops and the global view that the vision tower encodes.

Promises the released STEP3-VL preprocessing, with Pillow's bilinear filter, in memory proportional to the picture and
its views. Needs only numpy and Pillow. Leaves opening files to `open_image`.

    picture ─ pad if thin, to a square ─ shrink to max_side ─┬─ snap to windows ─ cut row by row ─ crops
                                                               └─ resize to a square ────────────── global
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tofc.errors import ImageError, UsageError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
Rgb = tuple[float, float, float]
MAX_PIXELS = 100_000_000
_BAND_PX = 64


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """What a tower wants of a channel whose values are 0 to 1: (value − mean) / std. By default CLIP's."""

    mean: Rgb = MEAN
    std: Rgb = STD

    def table(self) -> NDArray[np.float32]:
        """Return the normalised value [256, 3] of each byte in each channel."""
        return _table(self)


@cache
def _table(normalisation: Normalisation) -> NDArray[np.float32]:
    levels = np.arange(256, dtype=np.float64)[:, None] / 255
    found: NDArray[np.float32] = ((levels - np.array(normalisation.mean)) / np.array(normalisation.std)).astype(
        np.float32
    )
    return found


@dataclass(frozen=True, kw_only=True)
class ViewRule:
    """How pictures become views. Raises `UsageError` for sizes below 1 px."""

    global_size: int = 728
    """Side of the global view in px."""
    crop_size: int = 504
    """Side of a crop in px."""
    max_side: int = 3024
    """Longest side of a picture in px; larger pictures are scaled down."""
    normalisation: Normalisation = Normalisation()
    """What the tower wants of pixels."""

    def __post_init__(self) -> None:
        for name in ("global_size", "crop_size", "max_side"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1 px, got {getattr(self, name)}")

    @property
    def max_views(self) -> int:
        """The most views that a picture may have: those of a square picture with sides of `max_side`."""
        return math.ceil(self.max_side / self.crop_size) ** 2 + 1


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """How a picture of a given size is cut into views. Without crops `window`, `rows` and `columns` are 0."""

    padded: tuple[int, int]  # (width, height) in px after padding a thin picture to a square
    shrunk: tuple[int, int]  # after shrinking it so that no side exceeds max_side: the global view is made from this
    resized: tuple[int, int]  # after snapping its sides to multiples of the window: the windows are cut from this
    window: int  # side of a window in px, before it is resized to the crop size
    rows: int
    columns: int

    @property
    def crops(self) -> int:
        """Number of crops; the views are the crops and the global view."""
        return self.rows * self.columns


@dataclass(frozen=True, kw_only=True)
class View:
    """One input of the tower: `pixels` float32 [3, S, S], normalised. The global view is at row 0, column 0."""

    kind: Literal["crop", "global"]
    row: int
    column: int
    pixels: NDArray[np.float32]
    normalisation: Normalisation = Normalisation()

    def image(self) -> Image.Image:
        """Return the picture that this view shows."""
        mean, std = (np.array(one, np.float32) for one in (self.normalisation.mean, self.normalisation.std))
        values = self.pixels.transpose(1, 2, 0) * std + mean
        return Image.fromarray((values * 255).round().clip(0, 255).astype(np.uint8))


def plan(width: int, height: int, rule: ViewRule) -> ViewPlan:
    """Plan the views of a picture of `width` × `height` px. Raises `ImageError` if it is too narrow for its length.

    >>> plan(1920, 1080, ViewRule()).crops
    8
    >>> plan(640, 480, ViewRule()).crops
    0
    """
    if width < 1 or height < 1:
        raise ImageError(f"the picture is {width} × {height} px; it must have at least one pixel")
    given = f"the picture is {width} × {height} px"
    if min(width, height) < 32 and max(width, height) > 4 * min(width, height):
        width = height = max(width, height)
        if width * height > MAX_PIXELS:  # it is padded before it is shrunk
            raise ImageError(
                f"{given}; a picture this narrow must be at most {math.isqrt(MAX_PIXELS)} px long: cut or shrink it"
            )
    padded = width, height
    if max(width, height) > rule.max_side:
        scale = rule.max_side / max(width, height)
        # a side must not become 0
        width, height = max(1, int(width * scale)), max(1, int(height * scale))
    shrunk = width, height
    short, long = min(width, height), max(width, height)
    if long <= rule.global_size:
        window = short if long / short > 1.5 else 0
    else:
        window = min(short, rule.crop_size) if long / short > 4 else rule.crop_size
    if window == 0:
        return ViewPlan(padded=padded, shrunk=shrunk, resized=shrunk, window=0, rows=0, columns=0)
    wide, high = _snap(width, window), _snap(height, window)
    columns, rows = max(1, wide // window), max(1, high // window)
    if rows * columns >= rule.max_views:  # possible for a narrow picture, whose window is its short side
        raise ImageError(
            f"{given}, which makes {rows * columns + 1} views; at most {rule.max_views} are allowed: cut it shorter"
        )
    return ViewPlan(padded=padded, shrunk=shrunk, resized=(wide, high), window=window, rows=rows, columns=columns)


def _snap(side: int, window: int) -> int:
    """Return the multiple of `window` that a side is resized to; a shorter side is kept."""
    if side < window:
        return side
    return window * (side // window + (side % window > 0.2 * window))


def views(image: Image.Image, rule: ViewRule) -> list[View]:
    """Cut an RGB picture into its views in prompt order: crops row by row, the global view last."""
    image = image if image.mode == "RGB" else image.convert("RGB")
    cut = plan(*image.size, rule)
    image = _resize(image, cut.shrunk) if cut.padded == image.size else _pad_and_shrink(image, cut)
    found = []
    if cut.window:
        canvas = _resize(image, cut.resized)
        for row in range(cut.rows):
            for column in range(cut.columns):
                left, top = column * cut.window, row * cut.window
                # what is beyond the canvas is black
                window = canvas.crop((left, top, left + cut.window, top + cut.window))
                found.append(_view("crop", row, column, _resize(window, (rule.crop_size, rule.crop_size)), rule))
    return [*found, _view("global", 0, 0, _resize(image, (rule.global_size, rule.global_size)), rule)]


def _pad_and_shrink(image: Image.Image, cut: ViewPlan) -> Image.Image:
    """Put a thin picture at the top left of a black square and shrink it, without allocating the large square.

    The result is that of resizing the square, pixel for pixel: Pillow resizes rows, rounds, then resizes columns. Both
    steps are done in bands, and black stays black.
    """
    shrunk = Image.new("RGB", cut.shrunk)
    if cut.shrunk == cut.padded:
        shrunk.paste(image)
        return shrunk
    (width, height), long, side = image.size, cut.padded[0], cut.shrunk[0]
    if width == long:
        flat = _resize(image, (side, height))
        for left in range(0, side, _BAND_PX):
            band = Image.new("RGB", (min(_BAND_PX, side - left), long))
            band.paste(flat.crop((left, 0, left + band.width, height)))
            shrunk.paste(_resize(band, (band.width, side)), (left, 0))
    else:
        tall = Image.new(
            "RGB", (min(side, math.ceil(width * side / long) + 2), long)
        )  # columns to the right are all black
        for top in range(0, long, _BAND_PX):
            band = Image.new("RGB", (long, min(_BAND_PX, long - top)))
            band.paste(image.crop((0, top, width, top + band.height)))
            tall.paste(_resize(band, (side, band.height)).crop((0, 0, tall.width, band.height)), (0, top))
        shrunk.paste(_resize(tall, (tall.width, side)))
    return shrunk


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def _view(kind: Literal["crop", "global"], row: int, column: int, image: Image.Image, rule: ViewRule) -> View:
    values, table = np.asarray(image), rule.normalisation.table()  # [S, S, 3], [256, 3]
    pixels = np.stack([table[values[..., channel], channel] for channel in range(3)])
    return View(kind=kind, row=row, column=column, pixels=pixels, normalisation=rule.normalisation)
