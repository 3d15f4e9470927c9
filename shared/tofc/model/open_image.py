"""A picture's file → RGB pixels, as a viewer would show them.

    file ─ strip metadata ─ header ─ size check ─ decode ─ completeness ─ tone mapping ─ orientation ─→ RGB

Promises that an untrusted file which is too large is refused before it takes memory, that memory is proportional to the
number of pixels, and that metadata does not decide whether a file is accepted. Leaves tones to `tone_mapping`, metadata
to `image_metadata`, missing pixels to `image_completeness`.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from tofc.errors import ImageError
from tofc.model.format_hints import format_hint, is_heif, is_jxl
from tofc.model.image_completeness import lacks_rows, lacks_strips, with_end_marker
from tofc.model.image_headers import DECODER_BYTES, HeaderError, jxl_size, size_of
from tofc.model.image_metadata import strip_metadata
from tofc.model.suppress_output import suppress_stderr, suppress_warnings
from tofc.model.tone_mapping import brightest_value, low_bytes_rawmode, to_rgb
from tofc.model.views import MAX_PIXELS
from tofc.out_of_memory import can_allocate, out_of_memory

#: the formats that pictures are usually in → their plugins; some of Pillow's other decoders run programs
_FORMATS = {
    "JPEG": "Jpeg",
    "PNG": "Png",
    "WEBP": "WebP",
    "GIF": "Gif",
    "BMP": "Bmp",
    "TIFF": "Tiff",
    "AVIF": "Avif",
    "PPM": "Ppm",
}
#: big-endian raw mode → native one: libtiff has already swapped the bytes, and Pillow would swap them again
_NATIVE = {"F;32BF": "F;32NF", "I;32BS": "I;32NS", "I;16BS": "I;16NS"}
_ORIENTATION = 0x0112
_MAX_SIDE_PX = 65_535  # a longer picture makes too many views, and a row of one pixel costs Pillow 12 bytes
#: EXIF orientation → what makes the picture upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: Path | str | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an untrusted picture as RGB, upright, with transparency over white; of an animation, the first frame.

    `source` is a path or the content of a file. Raises `ImageError` for a file that is not a picture, is truncated,
    was written to while it was read, or has more than `max_pixels` (checked before any pixel is decoded).
    """
    name = "the picture" if isinstance(source, bytes) else str(source)
    with _opened(source, name) as file:
        before = _version(file)
        try:
            with suppress_warnings():
                image, turn = _read(file, max_pixels)
        except ImageError as error:
            raise ImageError(f"{name} {error}") from None
        except UnidentifiedImageError:
            file.seek(0)
            unknown = "is not a picture in a format that can be read; use JPEG, PNG or WebP"
            raise ImageError(f"{name} {format_hint(file.read(1024)) or unknown}") from None
        except Exception as error:  # the file is untrusted, and decoders raise many kinds of errors for damaged files
            if out_of_memory(error) or not _memory_sufficed(file, max_pixels):
                raise ImageError(f"{name} needs more memory than is free; scale it down first") from None
            reason = " ".join(str(error).split())
            raise ImageError(f"{name} is damaged or truncated ({reason}); save it again") from error
        if _version(file) != before:
            raise ImageError(f"{name} was written to while it was read; ask again when it is complete")
    return image.transpose(turn) if turn is not None else image


def image_in_memory(image: Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Convert a Pillow image, opened from a file or made by a program, as `open_image` does; `image` is not changed.

    Raises `ImageError` as `open_image` does.
    """
    try:
        if 0 in image.size:
            raise ImageError(f"is {image.size[0]} × {image.size[1]} px; give one that has pixels")
        _check_size(image.size, max_pixels)
        with suppress_warnings():
            turn = _turn(image)
            found = to_rgb(image.copy(), dict(getattr(image, "tag_v2", {})))
    except ImageError as error:
        raise ImageError(f"the picture {error}") from None
    except Exception as error:  # Pillow decodes an opened file only when its pixels are used
        if out_of_memory(error):
            raise ImageError("the picture needs more memory than is free; scale it down first") from None
        raise ImageError(f"the picture cannot be decoded ({' '.join(str(error).split())}); open it again") from error
    return found.transpose(turn) if turn is not None else found


@contextmanager
def _opened(source: Path | str | bytes, name: str) -> Iterator[IO[bytes]]:
    """Open a file. Error messages call it `name`."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    try:
        if Path(source).is_fifo():  # opening it would block, and it can be read only once
            raise ImageError(f"{name} is a pipe; write the picture to a file first")
        with open(source, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ImageError(f"{name} is not a file; give the path of a picture")
            yield file
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist; give the path of a picture") from None
    except IsADirectoryError:
        raise ImageError(f"{name} is a directory; give the path of a picture") from None
    except PermissionError:
        raise ImageError(f"{name} cannot be read by this user; change its permissions") from None
    except (OSError, ValueError) as error:  # an impossible file name, or a failing disk
        if isinstance(error, ImageError):
            raise
        why = (getattr(error, "strerror", None) or str(error)).lower()
        raise ImageError(f"{name} could not be read: {why}; give the path of a picture") from None


def _memory_sufficed(file: IO[bytes], max_pixels: int) -> bool:
    """Whether there was enough memory for a file that failed to decode. True for formats where Pillow reports it."""
    file.seek(0)
    data = file.read()
    for codec in ("webp", "avif"):
        with suppress(HeaderError):
            width, height = size_of(data, codec)
            return width * height > max_pixels or can_allocate(DECODER_BYTES * width * height)
    return True


def _version(file: IO[bytes]) -> tuple[int, int] | None:
    """Return the time of the last change and the size; None for bytes in memory."""
    if isinstance(file, io.BytesIO):
        return None
    status = os.fstat(file.fileno())
    return status.st_mtime_ns, status.st_size


class _Loaded(NamedTuple):
    image: Image.Image  # pixels in any mode, without the decoder
    rawmode: str  # Pillow's name of the pixel layout in the file
    tags: Mapping[int, Any]  # of a TIFF, else empty
    turn: Image.Transpose | None  # the rotation or reflection that makes the picture upright
    nominal: int  # the number that stands for white, by a PPM's header


def _read(file: IO[bytes], max_pixels: int) -> tuple[Image.Image, Image.Transpose | None]:
    """Read RGB pixels, and what makes them upright. The message of an `ImageError` lacks the file's name in front."""
    formats = _formats(file, max_pixels)
    pixels = strip_metadata(file)
    try:
        loaded = _load(pixels, formats, max_pixels)
    except UnidentifiedImageError:
        if formats in (["HEIF"], ["JXL"]):
            raise ImageError("is damaged or truncated; save it again") from None
        raise
    except OSError:
        if (whole := with_end_marker(pixels)) is None:
            raise
        loaded = _load(whole, formats, max_pixels)
    image, rawmode, tags, turn, nominal = loaded
    del loaded  # so that only `image` holds the pixels
    low_rawmode = low_bytes_rawmode(rawmode)
    low = None if low_rawmode is None else lambda: _load(pixels, formats, max_pixels, low_rawmode).image
    return to_rgb(image, tags, low, rawmode, nominal), turn


def _load(pixels: IO[bytes], formats: list[str], max_pixels: int, rawmode: str = "") -> _Loaded:
    """Decode the pixels. `rawmode`, if given, replaces the pixel layout that Pillow found."""
    try:
        with Image.open(pixels, formats=formats) as image:
            _check_size(image.size, max_pixels)
            tags = dict(getattr(image, "tag_v2", {}))
            if tags.get(254, 0) & 1:
                raise ImageError(
                    "begins with a small preview instead of the picture (a camera's raw file?); export it as JPEG"
                )
            if tags.get(284) == 2 and max(tags.get(258, (8,))) > 8:  # Pillow would take single bytes for pixels
                raise ImageError("has separate colour planes of more than 8 bits; save it with 8 bits a colour")
            missing = lacks_strips(image)
            deep_text = _is_deep_text(image)
            nominal = _deep_ppm(image)
            found = _rawmode(image)
            if image.tile and image.tile[0].codec_name == "libtiff":
                rawmode = rawmode or _NATIVE.get(found, "")
            if rawmode:
                image.tile = [tile._replace(args=_with_rawmode(tile.args, rawmode)) for tile in image.tile]
            with suppress_stderr() if image.format == "TIFF" else nullcontext():
                image.load()
            if missing or lacks_rows(pixels, image):
                raise ImageError("is damaged or truncated (some pixels are missing); save it again")
            if deep_text and 0 < brightest_value(image) < 65:  # Pillow's decoder keeps 8 bits
                raise ImageError(
                    "holds only numbers far below the white that its header names; save it with 8 bits a colour"
                )
            if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getbbox() is None:
                image.putalpha(255)  # everything would be transparent: the alpha byte is unused
            transparent = image.info.get("transparency")
            if isinstance(transparent, int) and found in ("L;2", "L;4"):  # the pixels were scaled to 8 bits
                image.info["transparency"] = transparent * (85 if found == "L;2" else 17)
            turn = _turn(image)
            # A new image, because some decoders keep twice the picture's memory as long as theirs exists.
            return _Loaded(image._new(image.im), found, tags, turn, nominal)
    except Image.DecompressionBombError as error:  # raised before `image.size` exists; the message contains the size
        match = re.search(r"\((\d+) pixels\)", str(error))
        raise _too_large(int(match[1]) if match else None, max_pixels) from None


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise _too_large(size[0] * size[1], max_pixels, f"is {size[0]} × {size[1]} px, ")
    if max(size) > _MAX_SIDE_PX:
        raise ImageError(
            f"is {size[0]} × {size[1]} px; at most {_MAX_SIDE_PX} px a side are allowed: cut it shorter or scale it "
            "down"
        )


def _too_large(found: int | None, max_pixels: int, begin: str = "has ") -> ImageError:
    megapixels = "too many" if found is None else f"{found / 1e6:.0f}"
    return ImageError(
        f"{begin}{megapixels} megapixels; at most {max_pixels / 1e6:.0f} are accepted: scale it down first"
    )


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception as error:  # unreadable EXIF is ignored
        if out_of_memory(error):
            raise
        return None


def _deep_ppm(image: Any) -> int:
    """Return the number for white in a PPM of more than 8 bits a colour; 65 535 for other pictures.

    Also replaces Pillow's decoder of such a PPM, which would keep only 8 bits.
    """
    tile = image.tile[0] if image.tile else None
    if tile is None or tile.codec_name != "ppm" or tile.args[0] != "RGB" or tile.args[1] < 256:
        return 65_535
    image.tile = [tile._replace(codec_name="raw", args=("RGB;16B", 0, 1))]
    return int(tile.args[1])


def _is_deep_text(image: Any) -> bool:
    """Whether `image` is a PPM in ASCII digits with more than 8 bits a colour."""
    return image.mode == "RGB" and any(tile.codec_name == "ppm_plain" and tile.args[1] > 255 for tile in image.tile)


def _rawmode(image: Any) -> str:
    """Return Pillow's name of the pixel layout in a file that is not loaded yet; empty if it has none."""
    args = image.tile[0].args if image.tile else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _with_rawmode(args: Any, rawmode: str) -> Any:
    return (rawmode, *args[1:]) if isinstance(args, tuple) else rawmode


def _formats(file: IO[bytes], max_pixels: int) -> list[str]:
    """Return the formats that Pillow may try: that of a plugin if the file is in it, else Pillow's own."""
    file.seek(0)
    head = file.read(1024)
    if is_heif(head):
        for library in ("pillow_heif", "pi_heif"):
            if (found := _import(library)) is not None:
                found.register_heif_opener()
                return ["HEIF"]
    if is_jxl(head) and _import("pillow_jxl") is not None:
        try:
            _check_size(jxl_size(head + file.read(1 << 20)), max_pixels)  # the plugin decodes when it opens a file
        except HeaderError:
            raise ImageError("is damaged or truncated; save it again") from None
        return ["JXL"]
    return _own_formats()


@cache
def _own_formats() -> list[str]:
    for plugin in _FORMATS.values():  # Image.init() would import 43 of them
        import_module(f"PIL.{plugin}ImagePlugin")
    return [name for name in _FORMATS if name in Image.OPEN]


def _import(library: str) -> Any:
    try:
        return import_module(library)
    except ImportError:
        return None
