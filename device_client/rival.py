"""The picture from an image codec in as many bytes as the packets take, which `inspect` shows beside them.

Promises the file within a budget that has the smallest squared error over the whole picture, or the smallest file that
was tried if none fits; the same file every time. Leaves compression to `tofc.model.image_codec`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from tofc.errors import ImageCodecError
from tofc.model.image_codec import compress, decompress, missing

TITLES = {"webp": "WebP", "avif": "AVIF"}
SCALES = tuple(0.5 * 0.8**step for step in range(18))
QUALITIES = (1, 10, 25, 45, 70)
_COMPARED_PX = 336  # the longer side at which two pictures are compared


@dataclass(frozen=True, kw_only=True, eq=False)
class Rival:
    """A picture after an image codec; `image` is None if Pillow lacks the codec or no file could be made."""

    codec: str
    image: Image.Image | None = None
    size_bytes: int = 0
    quality: int = 0
    fits: bool = False  # within the budget

    def __str__(self) -> str:
        title = TITLES[self.codec]
        if self.image is None:
            return f"{title}: not in this Pillow"
        how = f"{self.image.width} x {self.image.height} px, quality {self.quality}"  # the font has no other x
        return (
            f"{title}: {self.size_bytes:,} bytes, {how}"
            if self.fits
            else f"{title}: no fewer than {self.size_bytes:,} bytes, {how}"
        )


def best_within_budget(image: Image.Image, codec: str, budget_bytes: int) -> Rival:
    """Compress a picture into at most `budget_bytes`."""
    if missing(codec):
        return Rival(codec=codec)
    best: Rival | None = None
    smallest: Rival | None = None
    best_error = np.inf
    for scale in SCALES:
        for quality in QUALITIES:
            try:
                data = compress(image, codec, quality, scale)
            except ImageCodecError:  # at this scale a side is longer than the codec allows
                continue
            made = Rival(
                codec=codec,
                image=decompress(data, codec, max_pixels=image.width * image.height),
                size_bytes=len(data),
                quality=quality,
                fits=len(data) <= budget_bytes,
            )
            if smallest is None or made.size_bytes < smallest.size_bytes:
                smallest = made
            if not made.fits:
                break  # higher qualities take more bytes
            if (error := _error(image, made)) < best_error:
                best, best_error = made, error
    return best or smallest or Rival(codec=codec)


def _error(image: Image.Image, rival: Rival) -> float:
    """Return the mean squared error, both pictures at the same size."""
    assert rival.image is not None
    shrink = min(1.0, _COMPARED_PX / max(image.size))
    size = max(1, round(image.width * shrink)), max(1, round(image.height * shrink))
    one, other = (
        np.asarray(each.convert("RGB").resize(size, Image.Resampling.BILINEAR), np.float64)
        for each in (image, rival.image)
    )
    return float(np.square(one - other).mean())
