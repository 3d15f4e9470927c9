"""A picture's file → RGB pixels, as a person sees them.

    file ─ without metadata ─ header ─ size check ─ decode ─ all there? ─ tones ─ which side is up ─→ RGB

Promises that an untrusted file is refused before it can use memory, that memory then follows its pixels, and that
nothing else decides whether it is taken. Leaves tones to ``tones``, metadata to ``bare``, missing pixels to ``whole``.
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

from shared.model.bare import bare
from shared.model.image_headers import DECODER_BYTES, HeaderError, jxl_size, size_of
from shared.model.named_formats import is_heif, is_jxl, remedy
from shared.model.quiet import quiet, quiet_stderr
from shared.model.tones import brightest, low_bytes, rgb
from shared.model.views import MAX_PIXELS, ImageError
from shared.model.whole import ended, lacks_rows, lacks_strips
from shared.out_of_memory import out_of_memory, room_for

#: of Pillow's many decoders only those of pictures people have; some of the others run programs
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
#: libtiff turns bytes around already, and Pillow would do it again
_NATIVE = {"F;32BF": "F;32NF", "I;32BS": "I;32NS", "I;16BS": "I;16NS"}
_ORIENTATION = 0x0112
_MOST_SIDE = 65_535  # px: a longer ribbon makes too many views, and a row of one pixel costs Pillow 12 bytes
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
    """An untrusted picture as RGB, upright, transparency laid over white; of an animation, the first frame.

    Raises ``ImageError`` for what is no picture, is truncated, was written to meanwhile, or has more than
    ``max_pixels`` (told from its header, before any pixel is decoded).
    """
    shown = "the picture" if isinstance(source, bytes) else str(source)
    with _opened(source, shown) as file:
        before = _version(file)
        try:
            with quiet():
                image, turn = _read(file, max_pixels)
        except ImageError as error:
            raise ImageError(f"{shown} {error}") from None
        except UnidentifiedImageError:
            file.seek(0)
            said = remedy(file.read(1024)) or "is not a picture in a format that can be read; use JPEG, PNG or WebP"
            raise ImageError(f"{shown} {said}") from None
        except Exception as error:  # decoders of damaged files raise many kinds, and the file is a stranger's
            if out_of_memory(error) or not _fitted(file, max_pixels):
                raise ImageError(f"{shown} needs more memory than is free; scale it down first") from None
            said = " ".join(str(error).split())
            raise ImageError(f"{shown} is damaged or truncated ({said}); save it again") from error
        if _version(file) != before:
            raise ImageError(f"{shown} was written to while it was read; ask again when it is complete")
    return image.transpose(turn) if turn is not None else image


@contextmanager
def _opened(source: Path | str | bytes, shown: str) -> Iterator[IO[bytes]]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    try:
        if Path(source).is_fifo():  # it would be waited for, and can be read only once
            raise ImageError(f"{shown} is a pipe; write the picture to a file first")
        with open(source, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ImageError(f"{shown} is not a file; give the path of a picture")
            yield file
    except FileNotFoundError:
        raise ImageError(f"{shown} does not exist; give the path of a picture") from None
    except IsADirectoryError:
        raise ImageError(f"{shown} is a directory; give the path of a picture") from None
    except PermissionError:
        raise ImageError(f"{shown} may not be read by this user; change its permissions") from None
    except (OSError, ValueError) as error:  # a name that no file can have, a disk that fails
        if isinstance(error, ImageError):
            raise
        why = (getattr(error, "strerror", None) or str(error)).lower()
        raise ImageError(f"{shown} could not be read: {why}; give the path of a picture") from None


def _fitted(file: IO[bytes], max_pixels: int) -> bool:
    """Whether the pixels of what was not decoded would have had room; Pillow tells of other formats itself."""
    file.seek(0)
    data = file.read()
    for codec in ("webp", "avif"):
        with suppress(HeaderError):
            width, height = size_of(data, codec)
            return width * height > max_pixels or room_for(DECODER_BYTES * width * height)
    return True


def _version(file: IO[bytes]) -> tuple[int, int] | None:
    if isinstance(file, io.BytesIO):
        return None
    now = os.fstat(file.fileno())
    return now.st_mtime_ns, now.st_size


class _Loaded(NamedTuple):
    image: Image.Image  # pixels in whatever mode, and nothing of the decoder
    rawmode: str  # Pillow's name of how they lay in the file
    tags: Mapping[int, Any]  # of a TIFF
    turn: Image.Transpose | None  # what makes them upright
    nominal: int  # which number is white by the header of a PPM of 16 bits a colour


def _read(file: IO[bytes], max_pixels: int) -> tuple[Image.Image, Image.Transpose | None]:
    """RGB pixels and what makes them upright. An ``ImageError`` has the words that follow a name."""
    formats = _formats(file, max_pixels)
    pixels = bare(file)
    try:
        loaded = _load(pixels, formats, max_pixels)
    except UnidentifiedImageError:
        if formats in (["HEIF"], ["JXL"]):
            raise ImageError("is damaged or truncated; save it again") from None
        raise
    except OSError:
        if (whole := ended(pixels)) is None:
            raise
        loaded = _load(whole, formats, max_pixels)
    image, rawmode, tags, turn, nominal = loaded
    del loaded
    other = low_bytes(rawmode)
    low = None if other is None else lambda: _load(pixels, formats, max_pixels, other).image
    return rgb(image, tags, low, rawmode, nominal), turn


def _load(pixels: IO[bytes], formats: list[str], max_pixels: int, rawmode: str = "") -> _Loaded:
    """Of ``rawmode`` instead of the file's own, if given."""
    try:
        with Image.open(pixels, formats=formats) as image:
            _check_size(image.size, max_pixels)
            tags = dict(getattr(image, "tag_v2", {}))
            if tags.get(254, 0) & 1:
                raise ImageError("has a small preview in a picture's place (a camera's raw file?); export it as JPEG")
            if tags.get(284) == 2 and max(tags.get(258, (8,))) > 8:  # Pillow would read bytes of them as pixels
                raise ImageError("has its colours in planes of more than 8 bits; save it with 8 bits a colour")
            missing = lacks_strips(image)
            deep_text = _is_deep_text(image)
            nominal = _deep_ppm(image)
            found = _rawmode(image)
            if image.tile and image.tile[0].codec_name == "libtiff":
                rawmode = rawmode or _NATIVE.get(found, "")
            if rawmode:
                image.tile = [tile._replace(args=_of(rawmode, tile.args)) for tile in image.tile]
            with quiet_stderr() if image.format == "TIFF" else nullcontext():
                image.load()
            if missing or lacks_rows(pixels, image):
                raise ImageError("is damaged or truncated (a part of the pixels is missing); save it again")
            if deep_text and 0 < brightest(image) < 65:  # its decoder keeps 8 bits
                raise ImageError(
                    "holds numbers far below the white that its header names; save it with 8 bits a colour"
                )
            if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getbbox() is None:
                image.putalpha(255)  # where nothing would be seen, the byte is not in use
            clear = image.info.get("transparency")
            if isinstance(clear, int) and found in ("L;2", "L;4"):  # the pixels were stretched to 8 bits
                image.info["transparency"] = clear * (85 if found == "L;2" else 17)
            turn = _turn(image)
            # Some decoders hold twice the picture as long as their image lives.
            return _Loaded(image._new(image.im), found, tags, turn, nominal)
    except Image.DecompressionBombError as error:  # raised before the size can be asked for; its text has it
        pixels_told = re.search(r"\((\d+) pixels\)", str(error))
        raise _too_large(int(pixels_told[1]) if pixels_told else None, max_pixels) from None


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise _too_large(size[0] * size[1], max_pixels, f"is {size[0]} × {size[1]} px, ")
    if max(size) > _MOST_SIDE:
        raise ImageError(
            f"is {size[0]} × {size[1]} px; at most {_MOST_SIDE} px a side are accepted: cut it shorter or scale it down"
        )


def _too_large(found: int | None, max_pixels: int, begin: str = "has ") -> ImageError:
    megapixels = "too many" if found is None else f"{found / 1e6:.0f}"
    return ImageError(
        f"{begin}{megapixels} megapixels; at most {max_pixels / 1e6:.0f} are accepted: scale it down first"
    )


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception as error:  # what cannot be read says nothing
        if out_of_memory(error):
            raise
        return None


def _deep_ppm(image: Any) -> int:
    """Which number is white in a PPM of 16 bits a colour; its decoder, which keeps 8 of them, is replaced."""
    tile = image.tile[0] if image.tile else None
    if tile is None or tile.codec_name != "ppm" or tile.args[0] != "RGB" or tile.args[1] < 256:
        return 65_535
    image.tile = [tile._replace(codec_name="raw", args=("RGB;16B", 0, 1))]
    return int(tile.args[1])


def _is_deep_text(image: Any) -> bool:
    """Whether it is a PPM in decimal digits of more than 8 bits a colour."""
    return image.mode == "RGB" and any(tile.codec_name == "ppm_plain" and tile.args[1] > 255 for tile in image.tile)


def _rawmode(image: Any) -> str:
    args = image.tile[0].args if image.tile else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _of(rawmode: str, args: Any) -> Any:
    return (rawmode, *args[1:]) if isinstance(args, tuple) else rawmode


def _formats(file: IO[bytes], max_pixels: int) -> list[str]:
    """Of Pillow's decoders those that may see the file; those of other packages only where it is theirs."""
    file.seek(0)
    head = file.read(1024)
    if is_heif(head):
        for library in ("pillow_heif", "pi_heif"):
            if (found := _import(library)) is not None:
                found.register_heif_opener()
                return ["HEIF"]
    if is_jxl(head) and _import("pillow_jxl") is not None:
        try:
            _check_size(jxl_size(head + file.read(1 << 20)), max_pixels)  # its decoder does not wait to be told to
        except HeaderError:
            raise ImageError("is damaged or truncated; save it again") from None
        return ["JXL"]
    return _own_formats()


@cache
def _own_formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _import(library: str) -> Any:
    try:
        return import_module(library)
    except ImportError:
        return None
