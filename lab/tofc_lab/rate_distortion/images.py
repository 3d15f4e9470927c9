"""Pictures as image files: each codec at several qualities and scales, because users would also shrink a picture.

    picture ─ image codec ─ bytes ─ decode ─ tower ─ features ─ decoder

Promises the same files that `device-client ask --mode image` sends. Leaves measuring them to `measure`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Protocol

from PIL import Image

from tofc.model.image_codec import compress, decompress
from tofc_lab.nano.features import TowerOutput

SCALES = (0.7, 0.5, 0.35)
#: in each codec's own units; only the lowest is also tried at full size. A first sweep over more qualities and scales
#: found no other setting on the hull
QUALITIES = {"jpeg": (8, 15, 25, 40), "webp": (3, 10, 25, 45), "avif": (5, 12, 22, 35), "jxl": (20, 38, 55, 72)}

#: (quality, scale) of files behind a prefilter, of which every question needs another: near the smallest files there
#: are, because most of such a picture is flat
PREFILTERED = {
    "avif": ((1, 0.15), (5, 0.2), (5, 0.25), (5, 0.35), (12, 0.35), (12, 0.5)),
    "webp": ((3, 0.15), (3, 0.25), (3, 0.35), (10, 0.35), (25, 0.35), (25, 0.5)),
}


class ImageCodecSetting(Protocol):
    """A way to send a picture as an image file."""

    def __str__(self) -> str: ...

    @property
    def folder(self) -> str:
        """The name of the folder for its features."""

    def through(self, encode: Callable[[Image.Image], TowerOutput]) -> Callable[[Image.Image], TowerOutput]:
        """Return a function that codes and decodes a picture and passes it to `encode`, the tower."""


@dataclass(frozen=True)
class ImageSetting:
    """Codec, quality and scale of an image file."""

    codec: str
    quality: int
    scale: float

    def __str__(self) -> str:
        return f"quality {self.quality} scale {self.scale:g}"

    @property
    def folder(self) -> str:
        """The name of the folder for its features."""
        return f"{self.codec}-{self.quality}-{self.scale:g}"

    def through(self, encode: Callable[[Image.Image], TowerOutput]) -> Callable[[Image.Image], TowerOutput]:
        """Return a function that codes and decodes a picture and passes it to `encode`, the tower."""

        def encode_file(image: Image.Image) -> TowerOutput:
            data = compress(image, self.codec, self.quality, self.scale)
            found = encode(decompress(data, self.codec, max_pixels=image.width * image.height))
            return found._replace(size=len(data))

        return encode_file


def files(codec: str) -> list[ImageSetting]:
    """Return all settings of a codec that are tried."""
    least = min(QUALITIES[codec])
    return [
        ImageSetting(codec, least, 1.0),
        *(ImageSetting(codec, *pair) for pair in product(QUALITIES[codec], SCALES)),
    ]


def prefiltered_files(codec: str) -> list[ImageSetting]:
    """Return the settings of a codec that are tried behind a prefilter."""
    return [ImageSetting(codec, *pair) for pair in PREFILTERED[codec]]
