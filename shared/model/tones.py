"""Pixels of any depth → RGB of 8 bits, over white.

    1, 2, 4, 8 bits ─ Pillow ──────────────────────────┐
    12, 16, 32 bits, float ─ range ─ which is white? ──┼─ transparency over white ─→ RGB
    16 bits a colour ─ high bytes and low bytes ───────┘

Promises the tones that the file means, or a sentence where it does not say which number is white; never a picture that
is black because of its numbers. Works in stripes: beside source and result it takes a few MB. Leaves opening to
``open_image``.

Whole numbers of 16 bits that end below 256 or 4096 are taken as 8 or 12 bits in a larger container, as cameras and
array libraries write them: by their nominal range they would be nearly black. Of 32 bits hardly anybody uses the
nominal range, so that the usual one is taken of which they fill at least half.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.model.views import ImageError

_STRIPE = 1 << 20  # pixels looked at together
_NARROW = (1, 255, 4095)  # the white of 1, 8 and 12 bits in 16
_USUAL = (1, 255, 1023, 4095, 16_383, 65_535)  # in 32
_RINGING = 0.1  # of floating point from 0 to 1: what resizing leaves beyond


def stripes(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(top, the rows from there) of a loaded picture, some at a time."""
    width, height = image.size
    rows = max(1, _STRIPE // width)
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(height, top + rows)))


def rgb(image: Image.Image, tags: Mapping[int, Any], low: Callable[[], Image.Image] | None = None) -> Image.Image:
    """A picture as Pillow loaded it, with a TIFF's tags, → RGB without metadata.

    ``low`` gives the low bytes of one with 16 bits a colour, of which Pillow loads the high ones.

    Raises ``ImageError`` where the file does not say what its numbers mean.
    """
    signed = image.mode == "L" and tags.get(339, (1,))[0] == 2
    if low is not None and ("transparency" in image.info or _brightest(image) < 16):
        found = _sixteen(image, low())
    elif image.mode == "F" or image.mode.startswith("I") or signed:
        found = _grey(image, tags)
    elif image.mode != "RGB" or image.has_transparency_data:
        found = _joined(image, _plain)
    else:
        found = image
    found.info = {}
    return found


def low_bytes(rawmode: str) -> str | None:
    """The raw mode that gives the low bytes of pixels of ``rawmode``, if that gives the high ones of RGB.

    >>> low_bytes("RGB;16B"), low_bytes("RGB")
    ('RGB;16L', None)
    """
    layout, _, order = rawmode.partition(";16")
    if layout not in ("RGB", "RGBX", "RGBA") or order not in ("B", "L", "N"):
        return None
    big = order == "B" or (order == "N" and sys.byteorder == "big")
    return f"{layout};16{'L' if big else 'B'}"


def _joined(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    found = Image.new("RGB", image.size)
    for top, stripe in stripes(image):
        found.paste(convert(stripe), (0, top))
    return found


def _plain(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _grey(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """One number a pixel, of more than 8 bits or with a sign."""
    inverted = tags.get(262) == 0
    clear = image.info.get("transparency")

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
        white = _white(low, high, *_nominal(image.mode, tags), exact=inverted)

    def convert(stripe: Image.Image) -> Image.Image:
        values = numbers(stripe)
        levels = np.nan_to_num(values.astype(np.float64) * (255 / white), nan=0, posinf=255, neginf=0).clip(0, 255)
        levels = 255 - levels if inverted else levels
        if isinstance(clear, int):
            levels[values == clear] = 255
        return Image.fromarray(levels.round().astype(np.uint8)).convert("RGB")

    return _joined(image, convert)


def _sixteen(high: Image.Image, low: Image.Image) -> Image.Image:
    """Three numbers of 16 bits a pixel, or four with alpha."""
    clear = high.info.get("transparency")

    def numbers() -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
        for (top, more), (_, less) in zip(stripes(high), stripes(low), strict=True):
            values = np.asarray(more).astype(np.uint16) << 8 | np.asarray(less)
            yield top, values[..., :3], values[..., 3:] >> 8

    _, most, _ = _range(values for _, values, _ in numbers())
    white = _white(0, most, 65_535, _NARROW)
    found = Image.new("RGB", high.size)
    for top, values, alpha in numbers():
        levels = (values >> 8 if white == 65_535 else values * (255 / white)).round().astype(np.uint8)
        if clear is not None:
            levels[(values == clear).all(-1)] = 255
        found.paste(_plain(Image.fromarray(np.concatenate([levels, alpha.astype(np.uint8)], axis=-1))), (0, top))
    return found


def _range(stripes: Iterable[NDArray[Any]]) -> tuple[float, float, bool]:
    """(lowest, highest, whether all are whole) of the finite numbers."""
    low, high, whole = np.inf, -np.inf, True
    for values in stripes:
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            whole = whole and (values.dtype.kind != "f" or bool((finite == np.floor(finite)).all()))
    if low > high:
        raise ImageError("holds no finite number; save it with 8 bits a colour")
    return low, high, whole


def _white(low: float, high: float, nominal: int, narrow: tuple[int, ...], *, exact: bool = False) -> int:
    """Which whole number is white: ``nominal``, or one of ``narrow`` that holds them all, unless ``exact``."""
    narrowed = next((one for one in narrow if high <= one < nominal), nominal)
    white = nominal if exact else narrowed
    if exact and 0 < high <= narrowed < nominal:  # by the nominal range it would be nearly white
        raise _unclear(low, high)
    if not 0 <= low <= high <= white or (narrow is _USUAL and white > 255 and high * 2 < white):
        raise _unclear(low, high)
    return white


def _unclear(low: float, high: float) -> ImageError:
    return ImageError(
        f"holds numbers from {low:g} to {high:g} and does not say which of them is white; save it with 8 bits a "
        "colour, or as floating point from 0 (black) to 1 (white)"
    )


def _nominal(mode: str, tags: Mapping[int, Any]) -> tuple[int, tuple[int, ...]]:
    """The largest number that a pixel may have, and which others are taken for white."""
    bits = int(tags.get(258, (16,))[0])  # PNG's and PPM's are stretched to 16
    if mode == "F":
        return 65_535, _USUAL
    largest = (1 << bits) - 1 if mode.startswith("I;16") or _is_unsigned(tags) else (1 << bits - 1) - 1
    return largest, _NARROW if bits <= 16 else _USUAL


def _is_unsigned(tags: Mapping[int, Any]) -> bool:
    return bool(tags.get(339, (1,))[0] == 1)


def _brightest(image: Image.Image) -> int:
    return int(np.max(image.getextrema()[:3]))  # of colours, not of alpha
