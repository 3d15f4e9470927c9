"""Names of colours, for pixels and for whole cells of a picture.

Promises one of eleven everyday names for each pixel. Leaves questions about colours to `questions`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLOURS = ("black", "white", "grey", "red", "orange", "brown", "yellow", "green", "blue", "purple", "pink")
BLACK, WHITE, GREY, RED, ORANGE, BROWN, YELLOW, GREEN, BLUE, PURPLE, PINK = range(len(COLOURS))
#: typical (hue in degrees, saturation, value) of each name, lowest and highest, to draw things of that colour
RANGES = {
    "black": ((0, 360), (0.0, 0.3), (0.02, 0.14)),
    "white": ((0, 360), (0.0, 0.06), (0.93, 1.0)),
    "grey": ((0, 360), (0.0, 0.08), (0.4, 0.62)),
    "red": ((-9, 6), (0.8, 1.0), (0.6, 0.95)),
    "orange": ((22, 34), (0.85, 1.0), (0.9, 1.0)),
    "brown": ((15, 32), (0.55, 0.8), (0.3, 0.5)),
    "yellow": ((48, 58), (0.75, 1.0), (0.9, 1.0)),
    "green": ((95, 150), (0.6, 1.0), (0.35, 0.8)),
    "blue": ((205, 238), (0.65, 1.0), (0.5, 0.95)),
    "purple": ((265, 285), (0.55, 0.9), (0.4, 0.75)),
    "pink": ((318, 340), (0.35, 0.65), (0.92, 1.0)),
}


def names(image: Image.Image) -> NDArray[np.uint8]:
    """Return the index [H, W] in `COLOURS` of every pixel of an RGB picture.

    >>> COLOURS[names(Image.new("RGB", (1, 1), (200, 20, 30)))[0, 0]]
    'red'
    """
    bands = (np.asarray(band, np.float32) for band in image.convert("HSV").split())
    hue, saturation, value = (band * scale for band, scale in zip(bands, (360 / 256, 1 / 255, 1 / 255), strict=True))
    found: NDArray[np.uint8] = np.full(hue.shape, RED, np.uint8)
    found[(hue >= 14) & (hue < 42)] = ORANGE
    found[(hue >= 42) & (hue < 66)] = YELLOW
    found[(hue >= 66) & (hue < 170)] = GREEN
    found[(hue >= 170) & (hue < 255)] = BLUE
    found[(hue >= 255) & (hue < 295)] = PURPLE
    found[(hue >= 295) & (hue < 343)] = PINK
    found[((hue >= 343) | (hue < 14)) & (saturation < 0.55) & (value > 0.7)] = PINK
    found[(hue >= 8) & (hue < 48) & (value < 0.66)] = BROWN
    found[(saturation < 0.16) | ((value < 0.3) & (saturation < 0.3))] = GREY
    found[(saturation < 0.12) & (value > 0.78)] = WHITE
    found[value < 0.2] = BLACK
    return found


def shares(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """Return the shares [side², colours] of the names in each cell of a picture, in 255ths."""
    found = names(image)
    rows, columns = (np.arange(length) * side // length for length in found.shape)
    cell = rows[:, None] * side + columns
    counted = np.bincount((cell * len(COLOURS) + found).ravel(), minlength=side * side * len(COLOURS))
    counts = counted.reshape(side * side, len(COLOURS)).astype(np.float32)
    found_shares: NDArray[np.uint8] = np.rint(255 * counts / counts.sum(-1, keepdims=True)).astype(np.uint8)
    return found_shares


def draw(rng: np.random.Generator, name: str) -> tuple[int, int, int]:
    """Return a random RGB colour that has this name."""
    hue, saturation, value = (float(rng.uniform(*limits)) for limits in RANGES[name])
    hsv = Image.new("HSV", (1, 1), (int(hue % 360 * 256 / 360), int(saturation * 255), int(value * 255)))
    red, green, blue = np.asarray(hsv.convert("RGB"))[0, 0].tolist()
    return red, green, blue
