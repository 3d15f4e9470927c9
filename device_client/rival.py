"""The same picture in as few bytes by an image codec: what packets are looked at beside.

Promises the best file that is no larger than asked, best by squared error over the whole picture, or where there
is none the smallest that the codec can make. Deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from shared.model.image_file import ImageFileError, compress, decompress, missing

TITLES = {"webp": "WebP", "avif": "AVIF"}
SCALES = tuple(0.5 * 0.8**step for step in range(18))
QUALITIES = (1, 10, 25, 45, 70)
_LOOKED_AT = 336  # px: the longer side at which two pictures are compared


@dataclass(frozen=True, kw_only=True, eq=False)
class Rival:
    """A picture after an image codec; ``image`` None where Pillow lacks it or no file could be made."""

    codec: str
    image: Image.Image | None = None
    size: int = 0  # bytes
    quality: int = 0
    fits: bool = False  # in the bytes that were asked for

    def __str__(self) -> str:
        title = TITLES[self.codec]
        if self.image is None:
            return f"{title}: not in this Pillow"
        how = f"{self.image.width} x {self.image.height} px, quality {self.quality}"  # the font has no other x
        return (
            f"{title}: {self.size:,} bytes, {how}"
            if self.fits
            else f"{title}: no fewer than {self.size:,} bytes, {how}"
        )


def within(image: Image.Image, codec: str, budget: int) -> Rival:
    """The picture in at most ``budget`` bytes."""
    if missing(codec):
        return Rival(codec=codec)
    best: Rival | None = None
    least: Rival | None = None
    error = np.inf
    for scale in SCALES:
        for quality in QUALITIES:
            try:
                data = compress(image, codec, quality, scale)
            except ImageFileError:  # a side of no pixels
                continue
            made = Rival(
                codec=codec,
                image=decompress(data, codec, max_pixels=image.width * image.height),
                size=len(data),
                quality=quality,
                fits=len(data) <= budget,
            )
            if least is None or made.size < least.size:
                least = made
            if not made.fits:
                break  # a better quality takes more
            if (found := _error(image, made)) < error:
                best, error = made, found
    return best or least or Rival(codec=codec)


def _error(image: Image.Image, rival: Rival) -> float:
    assert rival.image is not None
    shrink = min(1.0, _LOOKED_AT / max(image.size))
    size = max(1, round(image.width * shrink)), max(1, round(image.height * shrink))
    one, other = (
        np.asarray(each.convert("RGB").resize(size, Image.Resampling.BILINEAR), np.float64)
        for each in (image, rival.image)
    )
    return float(np.square(one - other).mean())
