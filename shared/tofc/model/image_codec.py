"""Image codecs: a picture ⇄ a JPEG, WebP, AVIF or JPEG XL file. Packets are compared with them.

    image ─ shrink (Lanczos) ─ JPEG | WebP | AVIF | JPEG XL ─→ bytes ─ header ─ size check ─ decode ─→ image

Promises that a file holds pixels and no metadata, that it is the same on every machine with the same versions of the
codecs (encoders whose output depends on the number of threads use one), and that no untrusted file is decoded before
its size is known and allowed. Leaves reading the size to `image_headers`.

>>> picture = Image.linear_gradient("L").convert("RGB")
>>> data = compress(picture, "webp", 50, scale=0.5)
>>> decompress(data, "webp", max_pixels=100_000).size
(128, 128)
"""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, features

from tofc.errors import ImageCodecError
from tofc.model.image_headers import DECODER_BYTES, HeaderError, size_of
from tofc.out_of_memory import can_allocate, out_of_memory

CODECS = ("jpeg", "webp", "avif", "jxl")
_PILLOW = {"jpeg": "JPEG", "webp": "WEBP", "avif": "AVIF", "jxl": "JXL"}
_MAX_SIDE_PX = {"jpeg": 65_500, "webp": 16_383, "avif": 65_535, "jxl": 1 << 18}


def check_settings(codec: str, quality: int, scale: float) -> None:
    """Raise `ImageCodecError` (SETTING_INVALID) for an unknown codec, or a quality or scale that is not allowed."""
    if codec not in CODECS:
        raise ImageCodecError("SETTING_INVALID", f"codec must be one of {', '.join(CODECS)}, got {codec!r}")
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
        raise ImageCodecError("SETTING_INVALID", f"quality must be 1 (smallest) to 100 (best), got {quality}")
    if not 0 < scale <= 1:
        raise ImageCodecError("SETTING_INVALID", f"scale must be more than 0 and at most 1, got {scale:g}")


def require(codec: str) -> None:
    """Raise `ImageCodecError` (CODEC_MISSING) if Pillow cannot use `codec` here."""
    if codec == "jxl":
        try:
            import pillow_jxl  # noqa: F401  # registers itself with Pillow
        except ImportError:
            raise ImageCodecError("CODEC_MISSING", "JPEG XL is not installed: pip install pillow-jxl-plugin") from None
    elif not features.check("jpg" if codec == "jpeg" else codec):
        raise ImageCodecError(
            "CODEC_MISSING", f"this Pillow was built without {codec}: pip install --force-reinstall pillow"
        )


def missing(codec: str) -> bool:
    """Whether Pillow cannot use `codec` here."""
    try:
        require(codec)
    except ImageCodecError:
        return True
    return False


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Scale (width, height) in px; each side stays at least 1 px.

    >>> scaled_size((640, 3), 0.1)
    (64, 1)
    """
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def compress(image: Image.Image, codec: str, quality: int, scale: float = 1.0) -> bytes:
    """Encode a picture as a file. `quality` is on the codec's own scale: do not compare it between codecs.

    Raises `ImageCodecError` for settings that are not allowed and for pictures that the codec cannot hold.
    """
    check_settings(codec, quality, scale)
    require(codec)
    size = scaled_size(image.size, scale)
    if max(size) > _MAX_SIDE_PX[codec]:
        raise ImageCodecError(
            "IMAGE_TOO_LARGE",
            f"the picture is {size[0]} × {size[1]} px, but {codec} holds at most {_MAX_SIDE_PX[codec]} px a side: "
            "scale it down, or choose another codec",
        )
    image = image if image.mode == "RGB" else image.convert("RGB")
    image.load()
    plain = image._new(image.im) if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
    plain.info = {}  # Pillow would write the metadata in it
    try:
        files = [_saved(plain, codec, settings) for settings in _settings(codec, quality)]
        # At effort 7 it may store repeated parts in a frame of their own, which `size_of` refuses.
        if codec == "jxl" and not _is_accepted(files[0]):
            files = [_saved(plain, codec, _settings(codec, quality)[0] | {"effort": 6})]
        return min(files, key=len)
    except (OSError, ValueError, RuntimeError) as error:
        raise ImageCodecError(
            "IMAGE_INVALID", f"{codec} cannot hold this picture ({error}); choose another codec"
        ) from error


def _settings(codec: str, quality: int) -> list[dict[str, Any]]:
    """Return Pillow's settings for each file to try; the smallest file is kept."""
    match codec:
        case "jpeg":  # which of the two is smaller depends on the picture
            common = {"quality": quality, "optimize": True, "subsampling": "4:2:0"}
            return [{**common, "progressive": False}, {**common, "progressive": True}]
        case "webp":
            return [{"quality": quality, "method": 6}]
        case "avif":  # tiles and threads change the bytes
            return [{"quality": quality, "speed": 4, "autotiling": False, "max_threads": 1}]
        case _:  # 100 would mean lossless, which this plugin fails to write
            return [{"quality": min(quality, 99), "effort": 7, "num_threads": 1}]


def _is_accepted(data: bytes) -> bool:
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
    """Decode an untrusted file of `codec` to RGB. Raises `ImageCodecError`, and `MemoryError` if memory is short.

    The size is read from the header before a decoder sees the file; then Pillow may use only the decoder of `codec`,
    which must report the same size.
    """
    check_settings(codec, 1, 1.0)
    require(codec)
    try:
        width, height = size = size_of(data, codec)
    except HeaderError as error:
        raise ImageCodecError(
            "IMAGE_INVALID",
            f"these {len(data)} bytes cannot be decoded as {codec}: {error}",
        ) from None
    # Above its own limit Pillow would warn, or fail with a message of its own.
    limit = min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)
    if width * height > limit:
        raise ImageCodecError(
            "IMAGE_TOO_LARGE",
            f"the picture is {width} × {height} px, but only {limit} px are allowed: scale it down (--scale)",
        )
    try:
        with Image.open(io.BytesIO(data), formats=[_PILLOW[codec]]) as image:
            if image.size != size:
                raise HeaderError(f"its header says {width} × {height} px, its decoder {image.size}")
            image.load()
            # A new image, because some decoders keep twice the picture's memory as long as theirs exists.
            return image._new(image.im) if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # the file is untrusted, and decoders raise many kinds of errors for damaged files
        if out_of_memory(error) or not can_allocate(DECODER_BYTES * width * height):  # of this machine, not of the file
            raise MemoryError(str(error)) from error
        raise ImageCodecError("IMAGE_INVALID", f"the {codec} file is damaged or truncated ({error})") from error
