"""Pictures as files: what an image codec makes of one, and back. The baseline that packets are compared with.

    image ─ shrink (Lanczos) ─ JPEG | WebP | AVIF | JPEG XL ─→ bytes ─ header ─ size check ─ decode ─→ image

Promises that a file carries pixels and nothing else, is the same on every machine with the same codecs (no
encoder is left to share its work between however many threads there are), and that of an untrusted one nothing
is decoded before its size is known and allowed. Knows no network; leaves reading sizes to ``image_headers``.

>>> picture = Image.linear_gradient("L").convert("RGB")
>>> data = compress(picture, "webp", 50, scale=0.5)
>>> decompress(data, "webp", max_pixels=100_000).size
(128, 128)
"""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, features

from shared.model.image_headers import DECODER_BYTES, HeaderError, size_of
from shared.model.views import ImageError
from shared.out_of_memory import out_of_memory, room_for

CODECS = ("jpeg", "webp", "avif", "jxl")
_PILLOW = {"jpeg": "JPEG", "webp": "WEBP", "avif": "AVIF", "jxl": "JXL"}
_MOST_SIDE = {"jpeg": 65_500, "webp": 16_383, "avif": 65_535, "jxl": 1 << 18}


class ImageFileError(ImageError):
    """A file that cannot be made or used; the message says why and what to do, ``reason`` is for machines.

    Reasons: SETTING_INVALID, CODEC_MISSING, IMAGE_INVALID, IMAGE_TOO_LARGE.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_settings(codec: str, quality: int, scale: float) -> None:
    """Raises ``ImageFileError`` for an unknown codec, a quality or a scale that is not allowed."""
    if codec not in CODECS:
        raise ImageFileError("SETTING_INVALID", f"codec {codec!r} is not known; choose one of {', '.join(CODECS)}")
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
        raise ImageFileError("SETTING_INVALID", f"quality {quality} is not allowed; give 1 (smallest) to 100 (best)")
    if not 0 < scale <= 1:
        raise ImageFileError("SETTING_INVALID", f"scale {scale:g} is not allowed; give more than 0, at most 1")


def require(codec: str) -> None:
    """Raises ``ImageFileError`` (CODEC_MISSING) where Pillow lacks a codec."""
    if codec == "jxl":
        try:
            import pillow_jxl  # noqa: F401  # enters Pillow's tables
        except ImportError:
            raise ImageFileError("CODEC_MISSING", "JPEG XL is missing here: pip install pillow-jxl-plugin") from None
    elif not features.check("jpg" if codec == "jpeg" else codec):
        raise ImageFileError(
            "CODEC_MISSING", f"this Pillow was built without {codec}: pip install --force-reinstall pillow"
        )


def missing(codec: str) -> bool:
    """Whether Pillow lacks a codec here."""
    try:
        require(codec)
    except ImageFileError:
        return True
    return False


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """What becomes of (width, height) px; a side never vanishes.

    >>> scaled_size((640, 3), 0.1)
    (64, 1)
    """
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def compress(image: Image.Image, codec: str, quality: int, scale: float = 1.0) -> bytes:
    """The picture as a file. ``quality`` is on the codec's own scale: equal numbers are not equal qualities.

    Raises ``ImageFileError`` for settings that are not allowed and for what the codec cannot hold.
    """
    check_settings(codec, quality, scale)
    require(codec)
    size = scaled_size(image.size, scale)
    if max(size) > _MOST_SIDE[codec]:
        raise ImageFileError(
            "IMAGE_TOO_LARGE",
            f"the picture is {size[0]} × {size[1]} px, {codec} holds at most {_MOST_SIDE[codec]} px a side: scale it "
            "down, or take another codec",
        )
    image = image if image.mode == "RGB" else image.convert("RGB")
    image.load()
    plain = image._new(image.im) if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
    plain.info = {}  # the metadata, which Pillow would write again
    try:
        files = [_saved(plain, codec, settings) for settings in _settings(codec, quality)]
        if codec == "jxl" and not _taken(files[0]):  # repeated parts in a frame of their own, which is not decoded
            files = [_saved(plain, codec, _settings(codec, quality)[0] | {"effort": 6})]
        return min(files, key=len)
    except (OSError, ValueError, RuntimeError) as error:
        raise ImageFileError("IMAGE_INVALID", f"{codec} cannot hold this picture ({error})") from error


def _settings(codec: str, quality: int) -> list[dict[str, Any]]:
    """For Pillow; of several the smallest file is kept."""
    match codec:
        case "jpeg":  # which of the two is smaller depends on the picture
            both = {"quality": quality, "optimize": True, "subsampling": "4:2:0"}
            return [{**both, "progressive": False}, {**both, "progressive": True}]
        case "webp":
            return [{"quality": quality, "method": 6}]
        case "avif":  # tiles and threads change the bytes
            return [{"quality": quality, "speed": 4, "autotiling": False, "max_threads": 1}]
        case _:  # its 100 is lossless: another kind of file, and this plugin fails to write it
            return [{"quality": min(quality, 99), "effort": 7, "num_threads": 1}]


def _taken(data: bytes) -> bool:
    try:
        size_of(data, "jxl")
    except HeaderError:
        return False
    return True


def _saved(image: Image.Image, codec: str, settings: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, _PILLOW[codec], **settings)
    return buffer.getvalue()


def decompress(data: bytes, codec: str, *, max_pixels: int) -> Image.Image:
    """An untrusted file of ``codec`` → RGB. Raises ``ImageFileError``, and ``MemoryError`` as such.

    The size comes from the header, before a decoder sees the file; Pillow then may use the decoder of ``codec``
    alone, and must find the same size.
    """
    check_settings(codec, 1, 1.0)
    require(codec)
    try:
        width, height = size = size_of(data, codec)
    except HeaderError as error:
        raise ImageFileError("IMAGE_INVALID", f"the {len(data)} bytes are no {codec} file: {error}") from None
    # Beyond its own bound Pillow only warns, or fails with a sentence of its own.
    most = min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)
    if width * height > most:
        raise ImageFileError(
            "IMAGE_TOO_LARGE", f"the picture is {width} × {height} px, {most} px are allowed: scale it down (--scale)"
        )
    try:
        with Image.open(io.BytesIO(data), formats=[_PILLOW[codec]]) as image:
            if image.size != size:
                raise HeaderError(f"its header says {width} × {height} px, its decoder {image.size}")
            image.load()
            # Some decoders hold twice the picture as long as their image lives.
            return image._new(image.im) if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # decoders of damaged files raise many kinds, and the file is a stranger's
        if out_of_memory(error) or not room_for(DECODER_BYTES * width * height):  # of this machine, not of the file
            raise MemoryError(str(error)) from error
        raise ImageFileError("IMAGE_INVALID", f"the {codec} file is damaged or truncated ({error})") from error
