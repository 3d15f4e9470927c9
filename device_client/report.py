"""What an answer cost: bytes on the socket, ms of each stage, and what an image codec would have sent.

Promises that every number was measured in this run, or is None. Leaves showing them to `render`.
"""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from PIL import Image

from device_client.meter import Traffic
from device_client.picture import Picture
from shared.model.views import ViewRule, plan

MOST_MS = 1e9  # a server's figure beyond 11 days is none
QUALITY = 75  # Pillow's default for JPEG, and what most programs write


@dataclass(frozen=True, kw_only=True)
class Report:
    """One answer and its cost."""

    question: str
    answer: str
    finish_reason: str  # stop, length or cancelled
    bytes_picture: int  # packets, or image files, sent for this question; 0 when the server had the pictures
    bytes_up: int | None  # on the socket, headers in, since the question (the first: since connecting)
    bytes_down: int | None
    views: int  # of the question's pictures
    views_sent: int
    features: int  # visual features of its pictures that the model saw
    reconnects: int  # how often the link was lost on the way
    timings: dict[str, float] = field(default_factory=dict)  # ms; those of the server, server_…, may be NaN
    usage: dict[str, int] = field(default_factory=dict)
    mode: str = "features"  # or image, and then how
    image_codec: str | None = None
    image_quality: int | None = None
    image_scale: float | None = None
    unanswered: bool = False  # it ended while the model was still thinking
    thinking: str | None = None  # None: it was not asked for

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; ``thinking`` only where it was asked for."""
        return {name: value for name, value in asdict(self).items() if name != "thinking" or value is not None}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The same pictures as files: at the size the model looks at, and as they lie on the disk."""

    width: int  # of the first picture as re-encoded
    height: int
    quality: int
    jpeg_bytes: int
    webp_bytes: int
    file_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def plausible(ms: float) -> float:
    """A server's figure, NaN where it cannot be one: text then says "?", JSON null.

    >>> [plausible(ms) for ms in (1.5, -1.0, float("inf"), 3e38)]
    [1.5, nan, nan, nan]
    """
    return ms if 0 <= ms <= MOST_MS else math.nan


def spent(before: Traffic | None, after: Traffic | None) -> tuple[int | None, int | None]:
    """(up, down) between two readings; None where one of them is missing."""
    if before is None or after is None:
        return None, None
    return (after - before).up, (after - before).down


def input_size(image: Image.Image, rule: ViewRule) -> tuple[int, int]:
    """The fewest px (width, height) that lose the model nothing: its canvas, or the picture where that is smaller."""
    width, height = image.size
    layout = plan(width, height, rule)
    model = layout.resized if layout.crops else (rule.global_size, rule.global_size)
    return model if model[0] * model[1] < width * height else (width, height)


def compare(pictures: list[Picture], rule: ViewRule) -> Comparison | None:
    """Re-encode pictures with Pillow at `input_size`, quality 75. Sizes add up over the pictures.

    None for what these formats cannot hold (WebP ends at 16383 px a side), or the model's views (a picture may be
    narrower than they allow where its file is sent scaled down), and where memory is short.
    """
    jpeg = webp = 0
    sizes = []
    for picture in pictures:
        assert picture.image is not None, "pixels go with the last view"
        try:
            size = input_size(picture.image, rule)
            same = size == picture.image.size
            image = picture.image if same else picture.image.resize(size, Image.Resampling.BILINEAR)
            jpeg += _encoded(image, "JPEG")
            webp += _encoded(image, "WEBP")
        except (OSError, ValueError, MemoryError):  # a picture that was answered needs no comparison
            return None
        sizes.append(size)
    files = [picture.file_bytes for picture in pictures]
    return Comparison(
        width=sizes[0][0],
        height=sizes[0][1],
        quality=QUALITY,
        jpeg_bytes=jpeg,
        webp_bytes=webp,
        file_bytes=None if None in files else sum(size for size in files if size is not None),
    )


def _encoded(image: Image.Image, kind: str) -> int:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=QUALITY)
    return buffer.tell()
