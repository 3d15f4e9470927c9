"""Whether all of a picture's pixels are there, where Pillow says too much or too little.

Pillow refuses a JPEG that lacks only its end marker, and fills what is missing before the end of a JPEG with grey, of a
PNG or a TIFF with black. Promises that the first is taken and the others are noticed. Leaves other damage to the
decoders.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from hashlib import sha256
from typing import IO

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from shared.model.bare import joined
from shared.model.tones import stripes

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")  # that begins a segment
_NOISES = (b"\0\0\0\0", b"\x55\x55\x55\x55", b"\xa6\x39\x5b\xc7", b"\xfe\xfb\xdf\xf7")
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel, by colour type


def ended(jpeg: IO[bytes]) -> IO[bytes] | None:
    """A JPEG that stops before its end marker, with one; None if pixels are missing, or it is none.

    A decoder takes what lies between the last pixel and the end marker for nothing, but what lies in a missing
    pixel's place for that pixel. So the file is whole if it decodes alike whatever follows.
    """
    jpeg.seek(0)
    data = jpeg.read()
    size = len(data.rstrip(b"\xff"))  # half of the marker, or erased memory
    if data[:2] != b"\xff\xd8" or not _has_all_scans(data):
        return None
    seen = {_decoded(joined(jpeg, [(0, size), _noise(noise, first)])) for first, noise in enumerate(_NOISES)}
    return joined(jpeg, [(0, size), b"\xff\xd9"]) if len(seen) == 1 and None not in seen else None


def _noise(noise: bytes, first: int) -> bytes:
    """What no picture has at its end. A decoder that misses a part looks for a restart marker, not for any of them."""
    markers = (bytes((0xFF, 0xD0 + (2 * first + more) % 8)) for more in range(8))
    return b"".join(noise * 16 + marker for marker in markers) + b"\xff\xd9"


def _decoded(jpeg: IO[bytes], *, small: bool = False) -> bytes | None:
    """A hash of its pixels; ``small`` of the mean of every 8 × 8, with a 64th of the memory."""
    digest = sha256()
    try:
        with Image.open(jpeg, formats=["JPEG"]) as image:
            if small:
                image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            for _, stripe in stripes(image):
                digest.update(stripe.tobytes())
    except (OSError, SyntaxError):
        return None
    return digest.digest()


def _has_all_scans(data: bytes) -> bool:
    """Whether every coefficient of every component comes down to its last bit: a progressive file could stop before."""
    missing: set[tuple[int, int]] = {(0, 0)}  # (component, coefficient)
    for marker, _, body in _segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            missing = {(number, one) for number in body[6::3] for one in range(64)}
        elif marker == 0xDA and len(body) >= 4:
            first, last, bits = body[-3:]
            if bits & 15 == 0:
                missing -= {(number, one) for number in body[1:-3:2] for one in range(first, last + 1)}
    return not missing


def _segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(marker, where it is, what it holds) of a JPEG, beyond its first scan too; pixels are skipped."""
    at = 2
    while found := _MARKER.search(data, at):
        at = found.start() + 2 + int.from_bytes(data[found.end() : found.end() + 2], "big")
        yield data[found.start() + 1], found.start(), data[found.end() + 2 : at]
        at = max(at, found.end())


def lacks_rows(file: IO[bytes], image: Image.Image) -> bool:
    """Whether Pillow, which took the file, filled a part of the picture. Looks closer only where its end is flat."""
    if image.format not in ("JPEG", "PNG"):
        return False
    width, height = image.size
    corner = np.asarray(image.crop((max(0, width - 4), max(0, height - 4), width, height)))
    if image.format == "PNG":
        return not corner.any() and _png_lacks_rows(file, width, height)
    return bool((corner == corner[0, 0]).all()) and _jpeg_lacks_rows(file)


def lacks_strips(image: ImageFile) -> bool:
    """Whether a TIFF that is not loaded yet lists too few strips or tiles; Pillow leaves the rest of it black."""
    boxes = [tile.extents or (0, 0, *image.size) for tile in image.tile]
    listed = sum((right - left) * (lower - upper) for left, upper, right, lower in boxes)
    return image.format == "TIFF" and listed < image.width * image.height


def _jpeg_lacks_rows(jpeg: IO[bytes]) -> bool:
    """As in `ended`: whether what lies before the end marker matters."""
    jpeg.seek(0)
    data = jpeg.read()
    scan = next((at for marker, at, _ in _segments(data) if marker == 0xDA), len(data))
    if (end := data.find(b"\xff\xd9", scan)) < 0:
        return False
    wanted = _decoded(jpeg, small=True)
    markers = b"\xff\xdd" in data[:scan]  # of restarts: which one is looked for is not known
    return any(
        _decoded(joined(jpeg, [(0, end), _noise(_NOISES[first], first)]), small=True) != wanted
        for first in ((1, 3) if markers else (2,))
    )


def _png_lacks_rows(file: IO[bytes], width: int, height: int) -> bool:
    file.seek(16)
    *_, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", file.read(13))
    bits *= _SAMPLES[colour]
    wanted = 0
    for left, top, across, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        wanted += rows * (1 + -(-columns * bits // 8)) if columns > 0 else 0
    return _unpacked(file, wanted) < wanted


def _unpacked(file: IO[bytes], most: int) -> int:
    """How many bytes the stream of a PNG holds, counted up to ``most``."""
    unpacker = zlib.decompressobj()
    count, at = 0, 8
    while count < most and len(head := _read(file, at, 8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IDAT":
            data = file.read(length)
            while data and count < most:
                count += len(unpacker.decompress(data, 1 << 20))
                data = unpacker.unconsumed_tail
        at += 12 + length
    return count


def _read(file: IO[bytes], at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)
