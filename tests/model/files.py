"""Picture files assembled byte by byte, as no encoder here writes them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TYPES = {"B": 1, "s": 2, "H": 3, "I": 4, "f": 11}


def drawn(size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Make a colour gradient with an edge: no two rows, columns or corners are alike."""
    down, across = np.mgrid[0 : size[1], 0 : size[0]]
    red, green = across * 255 // size[0], down * 255 // size[1]
    return Image.fromarray(np.stack([red, green, 255 * (across > down)], axis=-1).astype(np.uint8))


def saved(image: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    right = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", right if crc is None else crc)


def header(size: tuple[int, int], depth: int, colour: int) -> bytes:
    return SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))


def png(rows: Iterable[bytes], size: tuple[int, int], depth: int, colour: int, *more: bytes) -> bytes:
    """Make a PNG; `more` are chunks before the pixels."""
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return header(size, depth, colour) + b"".join(more) + pixels + chunk(b"IEND", b"")


def with_chunks(whole: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    """Add chunks before and after the pixels of a PNG that Pillow wrote."""
    begin, end = whole.index(b"IDAT") - 4, whole.index(b"IEND") - 4
    return whole[:begin] + before + whole[begin:end] + after + whole[end:]


def tiff(
    size: tuple[int, int], pixels: bytes, bits: int, *, photometric: int = 1, kind: int = 1, samples: int = 1,
    order: str = "<", more: Iterable[tuple[int, str, list[Any]]] = (), packed: bool = False,
) -> bytes:  # fmt: skip
    """Make a TIFF. `kind` of number: 1 unsigned, 2 signed, 3 floating point. `more` are (tag, type, values)."""
    pixels = zlib.compress(pixels) if packed else pixels

    def built(at: int) -> bytes:
        tags = [
            *(
                (256, "I", [size[0]]),
                (257, "I", [size[1]]),
                (258, "H", [bits] * samples),
                (259, "H", [8 if packed else 1]),
            ),
            *((262, "H", [photometric]), (273, "I", [at]), (277, "H", [samples]), (278, "I", [size[1]])),
            *((279, "I", [len(pixels)]), (339, "H", [kind] * samples), *more),
        ]
        table, beyond = b"", b""
        for tag, letter, values in sorted(tags, key=lambda one: one[0]):
            data = b"".join(struct.pack(order + letter, value) for value in values)
            table += struct.pack(order + "HHI", tag, _TYPES[letter], len(values))
            if len(data) <= 4:
                table += data.ljust(4, b"\0")
            else:
                table += struct.pack(order + "I", 14 + 12 * len(tags) + len(beyond))
                beyond += data
        begin = b"II*\0" if order == "<" else b"MM\0*"
        return begin + struct.pack(order + "IH", 8, len(tags)) + table + bytes(4) + beyond

    return built(len(built(0))) + pixels


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """Make a WebP of these chunks."""
    body = b"".join(kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def segment(marker: int, data: bytes) -> bytes:
    """Make a segment of a JPEG."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def turned(orientation: int = 6) -> Image.Exif:
    """Return the EXIF of a camera that was held on its side."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif
