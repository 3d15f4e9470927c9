"""Pictures as image files: each codec over quality and resolution, since a user would shrink a picture too.

    picture ─ image codec ─ bytes ─ decode ─ tower ─ features ─ decoder

Promises the same files that `device-client ask --mode image` sends. Features of a setting are computed once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Protocol

from PIL import Image

from lab.nano.features import Seen
from shared.model.image_file import compress, decompress
from shared.model.tower import Tower

SCALES = (0.7, 0.5, 0.35)
#: on each codec's own scale, the lowest also at full size; a first sweep over more of both had nothing else on its hull
QUALITIES = {"jpeg": (8, 15, 25, 40), "webp": (3, 10, 25, 45), "avif": (5, 12, 22, 35), "jxl": (20, 38, 55, 72)}


class ImageFile(Protocol):
    """A way to send a picture as one: its name, and what the tower behind ``encode`` sees of it."""

    def __str__(self) -> str: ...

    @property
    def folder(self) -> str: ...

    def through(self, encode: Callable[[Image.Image], Seen]) -> Callable[[Image.Image], Seen]: ...


@dataclass(frozen=True)
class File:
    """One way to make a file of a picture."""

    codec: str
    quality: int
    scale: float

    def __str__(self) -> str:
        return f"quality {self.quality} scale {self.scale:g}"

    @property
    def folder(self) -> str:
        return f"{self.codec}-{self.quality}-{self.scale:g}"

    def through(self, encode: Callable[[Image.Image], Seen]) -> Callable[[Image.Image], Seen]:
        """What the tower behind ``encode`` sees of the file."""

        def seen(image: Image.Image) -> Seen:
            data = compress(image, self.codec, self.quality, self.scale)
            found = encode(decompress(data, self.codec, max_pixels=image.width * image.height))
            return found._replace(size=len(data))

        return seen


def files(codec: str) -> list[File]:
    """Every setting tried of a codec."""
    least = min(QUALITIES[codec])
    return [File(codec, least, 1.0), *(File(codec, *pair) for pair in product(QUALITIES[codec], SCALES))]


def tower_id(tower: Tower) -> str:
    """Twelve digits that change with the tower's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(tower.model.state_dict().items()):
        digest.update(name.encode() + value.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
