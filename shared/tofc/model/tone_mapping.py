"""Pixels of any bit depth → RGB of 8 bits, with transparency over white.

    1, 2, 4, 8 bits ─ Pillow ──────────────────────────┐
    12, 16, 32 bits, float ─ range ─ find white ────────┼─ transparency over white ─→ RGB
    16 bits a colour ─ high bytes and low bytes ───────┘

Promises the tones that the file's author saw, or an error if the file does not say which number is white; never a
picture that is black because its numbers are small. Works in stripes: it takes a few MB besides source and result.
Leaves opening files to `open_image`.

If all numbers of a 16-bit picture are below a quarter of the range, they are taken as 8, 10, 12 or 14 bits in a larger
container, as cameras and array libraries write them: in the nominal range they would be too dark to recognise. Pictures
of 32 bits hardly ever use the nominal range: the smallest usual range that holds the numbers is taken, and they must
fill at least half of it. If 0 is white, small numbers could mean a smaller range or a white page; only the file's
author knows which.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tofc.errors import ImageError

_STRIPE = 1 << 20  # pixels processed at once
_USUAL = (1, 255, 1023, 4095, 16_383, 65_535)  # white of 1, 8, 10, 12, 14 and 16 bits in a larger container
_RINGING = 0.1  # how far resizing may exceed the range 0..1 of floating point
_BLACK = 1 / 16  # of white: a picture with nothing above it looks black


def stripes(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield (top, rows from there) of a loaded picture, about a megapixel at a time."""
    width, height = image.size
    rows = max(1, _STRIPE // width)
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(height, top + rows)))


def to_rgb(
    image: Image.Image,
    tags: Mapping[int, Any],
    low: Callable[[], Image.Image] | None = None,
    rawmode: str = "",
    nominal: int = 65_535,
) -> Image.Image:
    """Map a picture as Pillow loaded it, and the tags of a TIFF, to RGB without metadata.

    Of a picture with 16 bits a colour, in the layout `rawmode`, Pillow loads the high bytes: `low` loads the low bytes,
    and `nominal` is the number for white by the file's header.

    Raises `ImageError` if the file does not say what its numbers mean.
    """
    signed = image.mode == "L" and tags.get(339, (1,))[0] == 2
    if low is not None and ("transparency" in image.info or brightest_value(image) < 64 or nominal < 65_535):
        found = _sixteen(image, low(), nominal, [1, 1, 1, 3] if rawmode == "LA;16B" else slice(None))
    elif image.mode == "F" or image.mode.startswith("I") or signed:
        found = _grey(image, tags)
    elif image.mode != "RGB" or image.has_transparency_data:
        found = _by_stripes(image, _over_white)
    else:
        found = image
    found.info = {}
    return found


def low_bytes_rawmode(rawmode: str) -> str | None:
    """Return the raw mode that loads the low bytes of numbers of which `rawmode` loads the high bytes; else None.

    For grey with alpha, it loads all four bytes of a pixel.

    >>> low_bytes_rawmode("RGB;16B"), low_bytes_rawmode("RGB")
    ('RGB;16L', None)
    """
    if rawmode == "LA;16B":
        return "RGBA"
    layout, _, order = rawmode.partition(";16")
    if layout not in ("RGB", "RGBX", "RGBA") or order not in ("B", "L", "N"):
        return None
    big = order == "B" or (order == "N" and sys.byteorder == "big")
    return f"{layout};16{'L' if big else 'B'}"


def _by_stripes(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert a picture to RGB stripe by stripe."""
    found = Image.new("RGB", image.size)
    for top, stripe in stripes(image):
        found.paste(convert(stripe), (0, top))
    return found


def _over_white(image: Image.Image) -> Image.Image:
    """Convert a picture of 8 bits to RGB, with its transparent pixels over white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _grey(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Map a picture with one number a pixel, of more than 8 bits or signed."""
    inverted = tags.get(262) == 0  # 0 is white
    transparent = image.info.get("transparency")

    def numbers(stripe: Image.Image) -> NDArray[Any]:
        values = np.asarray(stripe)
        if image.mode == "L":
            return values.view(np.int8)
        return values.view(np.uint32) if image.mode == "I" and _is_unsigned(tags) else values

    low, high, whole = _range(numbers(stripe) for _, stripe in stripes(image))
    if image.mode == "F" and low >= -_RINGING and high <= 1 + _RINGING:
        white = 1
    elif image.mode == "F" and not whole:
        raise _unclear(low, high)
    else:
        nominal, wide = _nominal(image.mode, tags)
        white = _white(low, high, nominal, wide)
        if inverted and high > 0 and white < nominal:
            raise _unclear(low, high)
    if 0 < (white - low if inverted else high) < white * _BLACK:
        raise _unclear(low, high)

    def convert(stripe: Image.Image) -> Image.Image:
        values = numbers(stripe)
        levels = np.nan_to_num(values.astype(np.float64) * (255 / white), nan=0, posinf=255, neginf=0).clip(0, 255)
        levels = 255 - levels if inverted else levels
        if isinstance(transparent, int):
            levels[values == transparent] = 255
        return Image.fromarray(levels.round().astype(np.uint8)).convert("RGB")

    return _by_stripes(image, convert)


def _sixteen(high: Image.Image, low: Image.Image, nominal: int, channels: slice | list[int]) -> Image.Image:
    """Map a picture of three 16-bit numbers a pixel, or four with alpha.

    `channels` are those of `low` that hold the low bytes of the channels of `high`.
    """
    transparent = high.info.get("transparency")

    def numbers() -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
        for (top, upper), (_, lower) in zip(stripes(high), stripes(low), strict=True):
            values = np.asarray(upper).astype(np.uint16) << 8 | np.asarray(lower)[..., channels]
            yield top, values[..., :3], values[..., 3:]

    brightest = most_opaque = 0
    for _, values, alpha in numbers():
        brightest, most_opaque = max(brightest, int(values.max())), max(most_opaque, int(alpha.max(initial=0)))
    white = _white(0, brightest, nominal)
    if 0 < brightest < white * _BLACK:
        raise _unclear(0, brightest)
    opaque = white if 0 < most_opaque <= white else 65_535
    found = low if low.mode == "RGB" else Image.new("RGB", high.size)
    for top, values, alpha in numbers():
        levels = _bytes(values, white)
        if transparent is not None:
            levels[(values == transparent).all(-1)] = 255
        found.paste(_over_white(Image.fromarray(np.concatenate([levels, _bytes(alpha, opaque)], axis=-1))), (0, top))
    return found


def _bytes(values: NDArray[Any], white: int) -> NDArray[np.uint8]:
    return (values >> 8 if white == 65_535 else values * (255 / white)).round().astype(np.uint8)


def _range(stripes: Iterable[NDArray[Any]]) -> tuple[float, float, bool]:
    """Return the lowest and the highest of the finite numbers, and whether all of them are whole."""
    low, high, whole = np.inf, -np.inf, True
    for values in stripes:
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            whole = whole and (values.dtype.kind != "f" or bool((finite == np.floor(finite)).all()))
    if low > high:
        raise ImageError("holds only NaN and infinity; save it with 8 bits a colour")
    return low, high, whole


def _white(low: float, high: float, nominal: int, wide: bool = False) -> int:
    """Return the number that is white: the smallest usual one that no number exceeds, else `nominal`.

    `wide` is for more than 16 bits. Raises `ImageError` if the numbers do not fit.
    """
    white = next((one for one in _USUAL if high <= one < nominal), nominal)
    if not 0 <= low <= high <= white or (wide and white > 255 and high * 2 < white):
        raise _unclear(low, high)
    return white


def _unclear(low: float, high: float) -> ImageError:
    return ImageError(
        f"holds numbers from {low:g} to {high:g} and does not say which number is white; save it with 8 bits a "
        "colour, or as floating point from 0 (black) to 1 (white)"
    )


def _nominal(mode: str, tags: Mapping[int, Any]) -> tuple[int, bool]:
    """Return the largest number that a pixel may have, and whether it has more than 16 bits."""
    bits = int(tags.get(258, (16,))[0])  # Pillow scales those of PNG and PPM to 16
    if mode == "F":
        return 65_535, True
    largest = (1 << bits) - 1 if mode.startswith("I;16") or _is_unsigned(tags) else (1 << bits - 1) - 1
    return largest, bits > 16


def _is_unsigned(tags: Mapping[int, Any]) -> bool:
    return bool(tags.get(339, (1,))[0] == 1)


def brightest_value(image: Image.Image) -> int:
    """Return the largest value in the colour channels, without alpha."""
    return int(np.max(image.getextrema()[:3]))
