"""A picture on the device: its pixels, its identity, and the packets made of it so far.

Promises that equal pixels under equal codec and setting have the same id on every device, so that a picture is not
sent to a server that has it. Leaves encoding to `encoder`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from PIL import Image

from tofc.model.image_codec import check_settings, scaled_size
from tofc.model.open_image import image_in_memory, open_image
from tofc.model.tone_mapping import stripes
from tofc.model.views import ViewRule, plan


@dataclass(frozen=True, kw_only=True)
class ImageForm:
    """How a picture is sent as an image file: codec, quality, scale. Raises ImageCodecError for values not allowed."""

    codec: str = "jpeg"
    """The image codec: jpeg, webp, avif or jxl."""
    quality: int = 75
    """1 (smallest file) to 100 (best picture)."""
    scale: float = 1.0
    """Above 0, up to 1: the file's width and height over the picture's."""

    def __post_init__(self) -> None:
        check_settings(self.codec, self.quality, self.scale)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One view as a packet, or a whole picture as an image file, and the time that each stage took."""

    index: int  # in prompt order: crops row by row, the global view last
    packet: bytes  # of this view alone
    joins: int = 1  # how many views leave with this one, which is the last of them; 0: it leaves with a later one
    joined: bytes = b""  # the packet of all of them, if there are several
    views_ms: float = 0.0  # preprocessing; the whole picture's is with the first view
    tower_ms: float = 0.0
    encode_ms: float = 0.0  # merging and entropy coding
    ended_s: float = 0.0  # when it was encoded, of time.perf_counter


class PacketMaker(Protocol):
    """What makes a picture's packets, each when it is requested."""

    def encode(self, image: Image.Image) -> Iterator[Encoded]: ...


@dataclass(kw_only=True, eq=False)
class Picture:
    """A picture to ask about. `rows` × `columns` crops (0 × 0: none) and one global view.

    `packets` grows as views are encoded, and is kept: a picture is encoded once, however often it is sent. The pixels
    are freed with the last view: `image` is None from then on.
    """

    source: str
    image: Image.Image | None
    picture_id: bytes
    rows: int
    columns: int
    file_bytes: int | None = None
    size: tuple[int, int] = (0, 0)  # (width, height) in px
    form: ImageForm | None = None  # None: a packet for each view; else one, which is an image file
    form_size: tuple[int, int] = (0, 0)  # (width, height) in px, of that file
    form_pixels: int = 0  # of that file, as the server counts them: with the padding of a narrow picture to a square
    packets: list[Encoded] = field(default_factory=list, repr=False)
    steps: Iterator[Encoded] | None = field(default=None, repr=False)  # the encoder's generator, where it stopped
    encoder: PacketMaker | None = field(default=None, repr=False)  # None: that of the session
    file: Picture | None = field(default=None, repr=False)  # what is sent instead of features, by `--mode auto`
    sent_as: str | None = None  # the mode that `--mode auto` chose when it was sent first: features, image

    @property
    def n_views(self) -> int:
        """Return the number of views that the model gets."""
        return self.rows * self.columns + 1

    @property
    def n_packets(self) -> int:
        """Return how many of `packets` there will be."""
        return 1 if self.form else self.n_views

    @property
    def megapixels(self) -> float:
        """Return its size in millions of pixels."""
        return self.size[0] * self.size[1] / 1e6


def picture_id(image: Image.Image, codec_id: str, setting: str) -> bytes:
    """Return 16 bytes: a hash of the codec, the encoder's setting, the size and the RGB pixels."""
    digest = hashlib.sha256(f"tofc picture {codec_id} {setting}".encode())
    digest.update(struct.pack("<II", *image.size))
    for _, stripe in stripes(image):
        digest.update(stripe.tobytes())
    return digest.digest()[:16]


def open_picture(
    given: Path | bytes | Image.Image, rule: ViewRule, codec_id: str, setting: str, form: ImageForm | None = None
) -> Picture:
    """Open, check and identify a picture; import nothing slow, encode nothing.

    An image that is given is copied: it is not changed here and may change later.

    Raises:
        ImageError: there is no such file, or it is not a picture, truncated or too large.
    """
    image = image_in_memory(given) if isinstance(given, Image.Image) else open_image(given)
    size = scaled_size(image.size, form.scale) if form else image.size
    layout = plan(*size, rule)
    return Picture(
        source=str(given) if isinstance(given, Path) else "the picture",
        image=image,
        picture_id=picture_id(image, codec_id, setting),
        rows=layout.rows,
        columns=layout.columns,
        file_bytes=_size(given),
        size=image.size,
        form=form,
        form_size=size,
        form_pixels=layout.padded[0] * layout.padded[1] if form else 0,
    )


def as_file(picture: Picture, rule: ViewRule, form: ImageForm) -> Picture:
    """Return a picture of features as one that is sent as an image file; its id follows from the other's.

    Raises ImageError if the model's views cannot hold it at the form's scale.
    """
    size = scaled_size(picture.size, form.scale)
    layout = plan(*size, rule)
    told = f"tofc image file {form.codec} {form.quality} {form.scale!r}".encode()
    return replace(
        picture,
        picture_id=hashlib.sha256(told + picture.picture_id).digest()[:16],
        rows=layout.rows,
        columns=layout.columns,
        form=form,
        form_size=size,
        form_pixels=layout.padded[0] * layout.padded[1],
        packets=[],
        steps=None,
    )


def _size(given: Path | bytes | Image.Image) -> int | None:
    if not isinstance(given, Path):
        return len(given) if isinstance(given, bytes) else None
    try:
        return given.stat().st_size
    except OSError:  # removed since it was opened
        return None
