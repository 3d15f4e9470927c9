"""A picture on the device: opened, identified, with the packets made of it so far.

Promises that equal pixels under equal codec and setting have the same id on every device, so that nothing
is sent to a server that has it. Leaves encoding to `encoder`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from shared.model.image_file import check_settings, scaled_size
from shared.model.open_image import open_image
from shared.model.tones import stripes
from shared.model.views import ViewRule, plan


@dataclass(frozen=True, kw_only=True)
class ImageForm:
    """A picture as an image file: which codec, how good, how large. Raises ImageFileError for what cannot be."""

    codec: str = "jpeg"
    quality: int = 75
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_settings(self.codec, self.quality, self.scale)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One view as a packet, or a whole picture as an image file; and the ms that each stage took."""

    index: int  # in prompt order: crops row by row, the global view last
    packet: bytes
    views_ms: float = 0.0  # preprocessing; the first view carries that of the whole picture
    tower_ms: float = 0.0
    encode_ms: float = 0.0  # merging and entropy coding


@dataclass(kw_only=True, eq=False)
class Picture:
    """A picture to ask about. ``rows`` × ``columns`` crops (0 × 0: none) and one global view.

    ``packets`` grows as views are encoded, and stays: a picture is encoded once, however often it is sent. With the
    last view the pixels go: ``image`` is None from then on.
    """

    source: str
    image: Image.Image | None
    picture_id: bytes
    rows: int
    columns: int
    file_bytes: int | None = None
    form: ImageForm | None = None  # None: a packet for each view; else one, which is an image file
    form_size: tuple[int, int] = (0, 0)  # px, of that file
    form_pixels: int = 0  # of it as the server sees it: a sliver is padded to a square
    packets: list[Encoded] = field(default_factory=list, repr=False)
    steps: Iterator[Encoded] | None = field(default=None, repr=False)  # of the encoder, where it stopped

    @property
    def n_views(self) -> int:
        return self.rows * self.columns + 1

    @property
    def n_packets(self) -> int:
        return 1 if self.form else self.n_views


def picture_id(image: Image.Image, codec_id: str, setting: str) -> bytes:
    """16 bytes: hash of codec, the encoder's setting, size and RGB pixels, so that nothing is taken for another."""
    digest = hashlib.sha256(f"tofc picture {codec_id} {setting}".encode())
    digest.update(struct.pack("<II", *image.size))
    for _, stripe in stripes(image):
        digest.update(stripe.tobytes())
    return digest.digest()[:16]


def open_picture(path: Path, rule: ViewRule, codec_id: str, setting: str, form: ImageForm | None = None) -> Picture:
    """Open, check and identify; no heavy import, no encoding.

    Raises:
        ImageError: there is no such file, or it is not a picture, truncated or too large.
    """
    image = open_image(path)
    size = scaled_size(image.size, form.scale) if form else image.size
    layout = plan(*size, rule)
    return Picture(
        source=str(path),
        image=image,
        picture_id=picture_id(image, codec_id, setting),
        rows=layout.rows,
        columns=layout.columns,
        file_bytes=_size(path),
        form=form,
        form_size=size,
        form_pixels=layout.padded[0] * layout.padded[1] if form else 0,
    )


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:  # gone since it was opened
        return None
