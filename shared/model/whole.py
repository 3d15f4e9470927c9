"""Whether all of a picture's pixels are there, where Pillow says too much or too little.

Pillow refuses a JPEG that lacks only its end marker, and fills what a PNG's stream lacks with black. Promises that the
first is taken and the second noticed. Leaves every other kind of damage to the decoders.
"""

from __future__ import annotations

import io
import struct
import zlib
from hashlib import sha256
from typing import IO

from PIL import Image

from shared.model.bare import joined
from shared.model.tones import stripes

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel, by colour type


def ended(jpeg: IO[bytes]) -> IO[bytes] | None:
    """A JPEG that stops before its end marker, with one; None if pixels are missing, or it is none.

    A decoder takes what lies between the last pixel and the end marker for nothing, but what lies in a missing
    pixel's place for that pixel. So the file is whole if it decodes alike whatever follows.
    """
    size = jpeg.seek(0, io.SEEK_END)
    jpeg.seek(0)
    data = jpeg.read()
    if data[:2] != b"\xff\xd8" or not _has_all_scans(data):
        return None
    seen = set()
    for noise in (b"\0", b"\x55", b"\xa6\x39\x5b\xc7"):
        # after each restart marker, too: a decoder that misses a part looks for the next one
        tail = b"".join(noise * (64 // len(noise)) + bytes((0xFF, 0xD0 + number)) for number in range(8))
        try:
            with Image.open(joined(jpeg, [(0, size), b"\0" + tail + b"\xff\xd9"]), formats=["JPEG"]) as image:
                image.load()
                digest = sha256()
                for _, stripe in stripes(image):
                    digest.update(stripe.tobytes())
        except (OSError, SyntaxError):
            return None
        seen.add(digest.digest())
    return joined(jpeg, [(0, size), b"\0\xff\xd9"]) if len(seen) == 1 else None


def _has_all_scans(data: bytes) -> bool:
    """Whether every coefficient of every component comes down to its last bit: a progressive file could stop before."""
    missing: set[tuple[int, int]] = set()  # (component, coefficient)
    seen = False  # of scans, some
    at = 2
    for _ in range(10_000):
        at = data.find(b"\xff", at)
        if at < 0 or at + 4 > len(data):
            break
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (0, 0xFF) or 0xD0 <= marker <= 0xD9:  # within pixels
            at += 2 if marker != 0xFF else 1
            continue
        body = data[at + 4 : at + 2 + length]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            missing = {(number, one) for number in body[6::3] for one in range(64)}
        elif marker == 0xDA and len(body) >= 4:
            first, last, bits = body[-3:]
            if bits & 15 == 0:
                missing -= {(number, one) for number in body[1:-3:2] for one in range(first, last + 1)}
            seen = True
        at += 2 + length
    return seen and not missing


def lacks_rows(file: IO[bytes], image: Image.Image) -> bool:
    """Whether a PNG's stream, which Pillow took, is shorter than its pixels. Looks closer at a black end only."""
    width, height = image.size
    if image.crop((0, max(0, height - 2), width, height)).getbbox(alpha_only=False) is not None:
        return False
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
