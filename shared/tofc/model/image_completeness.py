"""Whether all pixels of a picture are in its file, where Pillow is too strict or too lenient.

Pillow refuses a JPEG that lacks only its end marker, and replaces missing pixels: in a JPEG by grey, in a PNG or a TIFF
by black. Promises that such a JPEG is accepted and that missing pixels are detected. Leaves other damage to the
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

from tofc.model.image_metadata import concatenate, read_at
from tofc.model.tone_mapping import stripes

#: first column, first row, and distance of columns and rows, of each interlacing pass of a PNG
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")  # that begins a segment
#: bytes that decode to different pixels
_NOISES = (b"\0\0\0\0", b"\x55\x55\x55\x55", b"\xa6\x39\x5b\xc7", b"\xfe\xfb\xdf\xf7")
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # per pixel of a PNG, by its colour type


def with_end_marker(jpeg: IO[bytes]) -> IO[bytes] | None:
    """Add the end marker to a JPEG that lacks it; None if pixels are missing or it is not a JPEG.

    A decoder ignores bytes between the last pixel and the end marker, but decodes bytes in the place of a missing pixel
    as that pixel. So no pixel is missing if the file decodes to the same pixels whatever bytes are appended.
    """
    jpeg.seek(0)
    data = jpeg.read()
    size = len(data.rstrip(b"\xff"))  # without half a marker, or bytes of erased flash memory
    if data[:2] != b"\xff\xd8" or not _has_all_scans(data):
        return None
    hashes = {_pixel_hash(concatenate(jpeg, [(0, size), _noise(index)])) for index in range(len(_NOISES))}
    return concatenate(jpeg, [(0, size), b"\xff\xd9"]) if len(hashes) == 1 and None not in hashes else None


def _noise(index: int) -> bytes:
    """Return bytes that would decode to visible pixels, then the end marker.

    A decoder that lacks data may skip to the next restart marker, of which there are eight: all of them occur, each
    time beginning with another one.
    """
    markers = (bytes((0xFF, 0xD0 + (2 * index + number) % 8)) for number in range(8))
    return b"".join(_NOISES[index] * 16 + marker for marker in markers) + b"\xff\xd9"


def _pixel_hash(jpeg: IO[bytes], *, small: bool = False) -> bytes | None:
    """Hash the pixels, or with `small` the means of blocks of 8 × 8, in a 64th of the memory; None if undecodable."""
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
    """Whether the scans hold every coefficient to its last bit: a truncated progressive file lacks some scans."""
    missing: set[tuple[int, int]] = {(0, 0)}  # (component, coefficient); until a frame header names them, anything
    for marker, _, body in _segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            missing = {(component, coefficient) for component in body[6::3] for coefficient in range(64)}
        elif marker == 0xDA and len(body) >= 4:
            first, last, approximation = body[-3:]
            if approximation & 15 == 0:  # the scan holds the lowest bit
                missing -= {(component, one) for component in body[1:-3:2] for one in range(first, last + 1)}
    return not missing


def _segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (marker, position, content) of a JPEG's segments, also after the first scan; pixel data is skipped."""
    at = 2
    while found := _MARKER.search(data, at):
        at = found.start() + 2 + int.from_bytes(data[found.end() : found.end() + 2], "big")
        yield data[found.start() + 1], found.start(), data[found.end() + 2 : at]
        at = max(at, found.end())


def lacks_rows(file: IO[bytes], image: Image.Image) -> bool:
    """Whether the file lacks pixels that Pillow replaced. The file is read only if the last pixels are all equal."""
    if image.format not in ("JPEG", "PNG"):
        return False
    width, height = image.size
    corner = np.asarray(image.crop((max(0, width - 4), max(0, height - 4), width, height)))
    if image.format == "PNG":
        return not corner.any() and _png_lacks_rows(file, width, height)
    return bool((corner == corner[0, 0]).all()) and _jpeg_lacks_rows(file)


def lacks_strips(image: ImageFile) -> bool:
    """Whether a TIFF that is not loaded yet lists too few strips or tiles, for which Pillow would leave black."""
    boxes = [tile.extents or (0, 0, *image.size) for tile in image.tile]
    listed = sum((right - left) * (lower - upper) for left, upper, right, lower in boxes)
    return image.format == "TIFF" and listed < image.width * image.height


def _jpeg_lacks_rows(jpeg: IO[bytes]) -> bool:
    """Whether bytes inserted before the end marker change the pixels, as in `with_end_marker`."""
    jpeg.seek(0)
    data = jpeg.read()
    scan = next((at for marker, at, _ in _segments(data) if marker == 0xDA), len(data))
    if (end := data.find(b"\xff\xd9", scan)) < 0:
        return False
    expected = _pixel_hash(jpeg, small=True)
    restarts = b"\xff\xdd" in data[:scan]  # then the decoder may skip to a restart marker; which one is unknown
    return any(
        _pixel_hash(concatenate(jpeg, [(0, end), _noise(index)]), small=True) != expected
        for index in ((1, 3) if restarts else (2,))
    )


def _png_lacks_rows(file: IO[bytes], width: int, height: int) -> bool:
    """Whether the pixel data decompress to fewer bytes than the picture has."""
    file.seek(16)
    *_, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", file.read(13))
    bits *= _SAMPLES[colour]
    expected = 0
    for left, top, across, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        expected += rows * (1 + -(-columns * bits // 8)) if columns > 0 else 0
    return _decompressed_size(file, expected) < expected


def _decompressed_size(file: IO[bytes], enough: int) -> int:
    """Count the bytes of a PNG's decompressed pixel data, until there are `enough`."""
    unpacker = zlib.decompressobj()
    count, at = 0, 8
    while count < enough and len(head := read_at(file, at, 8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IDAT":
            data = file.read(length)
            while data and count < enough:
                count += len(unpacker.decompress(data, 1 << 20))
                data = unpacker.unconsumed_tail
        at += 12 + length
    return count
