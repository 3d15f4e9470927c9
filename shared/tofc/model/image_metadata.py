"""Removes the metadata of an image file: text, colour profiles, previews, and their checksums.

    file ─ walk its chunks, segments, boxes or tags ─ keep pixel data and orientation ─→ file

Promises that metadata which is too large, damaged or truncated does not prevent decoding, that a PNG which lacks only
its end gets one, and that almost no memory is needed: the result reads from the original file. A file of unexpected
structure is returned unchanged. Leaves the pixels to the decoder, and missing ones to `image_completeness`.

>>> import io
>>> from PIL import Image
>>> buffer = io.BytesIO()
>>> Image.new("1", (4, 4)).save(buffer, "PNG", icc_profile=b"not a profile")
>>> b"not a profile" in strip_metadata(buffer).read(), Image.open(strip_metadata(buffer)).size
(False, (4, 4))
"""

from __future__ import annotations

import io
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import IO, Any

Part = bytes | tuple[int, int]  # literal bytes, or (begin, end) in the file

_MAX_METADATA_BYTES = 1 << 20  # of one piece that is kept; an orientation needs a few hundred
_MAX_PIECES = 10_000
#: allowed lengths of a tRNS chunk in bytes, by a PNG's colour type
_PNG_TRANSPARENCY = {b"\0": range(2, 3), b"\2": range(6, 7), b"\3": range(1, 257)}
#: the TIFF tags that locate and describe the pixels (TIFF 6.0, and libtiff's own)
_TIFF_TAGS = frozenset(
    (254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332)
) | {334, 336, 338, 339, 340, 341, 347, *range(512, 522), 529, 530, 531, 532}
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}


def strip_metadata(file: IO[bytes]) -> IO[bytes]:
    """Return `file`, at its beginning, without the metadata that a PNG, JPEG, WebP, TIFF or AVIF has."""
    file.seek(0)
    head = file.read(12)
    try:
        if head[:8] == b"\x89PNG\r\n\x1a\n":
            return concatenate(file, _png(file))
        if head[:2] == b"\xff\xd8":
            return concatenate(file, _jpeg(file))
        if head[:4] == b"RIFF" and head[8:] == b"WEBP":
            return concatenate(file, _webp(file))
        if head[:4] in (b"II*\0", b"MM\0*"):
            return concatenate(file, _tiff(file))
        if head[4:8] == b"ftyp":
            return concatenate(file, _avif(file))
    except _Unexpected:
        pass
    file.seek(0)
    return file


class _Unexpected(Exception):
    """Bytes that do not follow the structure of their format."""


def _png(file: IO[bytes]) -> list[Part]:
    end = _size(file)
    before: list[Part] = [(0, 8)]
    begin = stop = 0  # of the first run of IDAT chunks; decoders ignore later ones
    cut: list[Part] = []  # the last IDAT chunk, shortened, if the file ends within it
    at, colour = 8, b""
    while len(before) < _MAX_PIECES and len(head := read_at(file, at, 8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        after = at + 12 + length
        if kind == b"IHDR":
            colour = read_at(file, at + 17, 1)
        if kind == b"IDAT" and (not begin or stop == at):
            begin = begin or at
            if after > end:
                available = min(length, end - at - 8)
                cut = [struct.pack(">I4s", available, kind), (at + 8, at + 8 + available), bytes(4)]
                stop = at
                break
            stop = after
        elif after <= end and (
            (not begin and _png_affects_pixels(file, at, length, kind, colour))
            or _png_may_hold_orientation(file, at, length, kind)
        ):
            before.append((at, after))
        if kind == b"IEND" or not kind.isalpha() or after > end:
            break
        at = after
    return [*before, (begin, stop), *cut, bytes.fromhex("00000000 49454e44 ae426082")]


def _png_affects_pixels(file: IO[bytes], at: int, length: int, kind: bytes, colour: bytes) -> bool:
    """Whether a chunk before the pixels affects them. The palette of a true-colour picture does not."""
    if kind == b"tRNS":
        return length in _PNG_TRANSPARENCY.get(colour, ()) and _png_crc_is_right(file, at, length)
    return kind == b"IHDR" or (kind == b"PLTE" and colour == b"\3")


def _png_crc_is_right(file: IO[bytes], at: int, length: int) -> bool:
    return struct.pack(">I", zlib.crc32(read_at(file, at + 4, 4 + length))) == read_at(file, at + 8 + length, 4)


def _png_may_hold_orientation(file: IO[bytes], at: int, length: int, kind: bytes) -> bool:
    """Whether a chunk may hold the orientation: well-formed EXIF or XMP."""
    if kind not in (b"eXIf", b"iTXt", b"zTXt", b"tEXt") or length > _MAX_METADATA_BYTES:
        return False
    if not _png_crc_is_right(file, at, length):
        return False
    if kind == b"eXIf":
        return True
    keyword, _, text = read_at(file, at + 8, length).partition(b"\0")
    if keyword not in (b"XML:com.adobe.xmp", b"Raw profile type exif"):
        return False
    compressed = text[1:]  # after the compression method
    if kind == b"iTXt":
        compressed = text[2:].split(b"\0", 2)[-1] if text[:1] == b"\1" else b""
    if kind == b"tEXt" or not compressed:
        return True
    try:
        unpacker = zlib.decompressobj()
        unpacker.decompress(compressed, _MAX_METADATA_BYTES)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail


def _jpeg(file: IO[bytes]) -> list[Part]:
    parts: list[Part] = [(0, 2)]
    for marker, begin, end in _segments(file):
        if marker == 0xDA:
            return [*parts, (begin, _size(file))]
        if not 0xE0 <= marker <= 0xFE or _jpeg_is_needed(marker, read_at(file, begin + 4, end - begin - 4)):
            parts.append((begin, end))
    raise _Unexpected


def _jpeg_is_needed(marker: int, data: bytes) -> bool:
    """Whether an application segment holds the colour space or the orientation. Decoders ignore shorter ones."""
    return (
        (marker == 0xE0 and data[:5] == b"JFIF\0" and len(data) >= 14)
        or (marker == 0xEE and data[:5] == b"Adobe" and len(data) >= 12)
        or (marker == 0xE1 and data.startswith((b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")))
    )


def _segments(file: IO[bytes]) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, begin, end) of a JPEG's segments up to the first scan; bytes between them are skipped."""
    at, end = 2, _size(file)
    for _ in range(_MAX_PIECES):
        window = read_at(file, at, 1 << 12)
        skipped = next((i for i, pair in enumerate(pairwise(window)) if _is_marker(*pair)), None)
        if skipped is None:
            return
        at += skipped
        marker = window[skipped + 1]
        length = int.from_bytes(read_at(file, at + 2, 2), "big")
        if length < 2 or at + 2 + length > end:
            at += 2  # look for the next marker, as decoders do
            continue
        yield marker, at, at + 2 + length
        if marker == 0xDA:
            return
        at += 2 + length


def _is_marker(first: int, second: int) -> bool:
    return first == 0xFF and 0xC0 <= second <= 0xFE and not 0xD0 <= second <= 0xD9


def _webp(file: IO[bytes]) -> list[Part]:
    end = _size(file)
    found: dict[bytes, Part] = {}
    at = 12
    for _ in range(_MAX_PIECES):
        head = read_at(file, at, 8)
        if len(head) < 8:
            break
        kind, length = struct.unpack("<4sI", head)
        stop = min(at + 8 + length + length % 2, end)
        if kind in (b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L") or (
            kind in (b"EXIF", b"XMP ") and at + 8 + length <= end and length <= _MAX_METADATA_BYTES
        ):
            found.setdefault(kind, (at, stop))
        at = stop
    if b"VP8X" in found:
        begin, stop = found[b"VP8X"]
        flags = read_at(file, begin + 8, 1)[0] & 0x12 | 0x08 * (b"EXIF" in found) | 0x04 * (b"XMP " in found)
        found[b"VP8X"] = read_at(file, begin, 8) + bytes([flags]) + read_at(file, begin + 9, stop - begin - 9)
    elif not (found := {kind: part for kind, part in found.items() if kind in (b"VP8 ", b"VP8L")}):
        raise _Unexpected
    order = (b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L", b"EXIF", b"XMP ")
    parts = [found[kind] for kind in order if kind in found]
    return [b"RIFF" + struct.pack("<I", 4 + sum(map(_length, parts))) + b"WEBP", *parts]


def _tiff(file: IO[bytes]) -> list[Part]:
    """Replace the first picture's table of tags by one with the tags that affect pixels, and drop further pictures."""
    order = "<" if read_at(file, 0, 2) == b"II" else ">"
    end = _size(file)
    (at,) = struct.unpack(order + "I", _exactly(file, 4, 4))
    (count,) = struct.unpack(order + "H", _exactly(file, at, 2))
    table = _exactly(file, at + 2, 12 * count)
    kept = []
    for entry in (table[i : i + 12] for i in range(0, len(table), 12)):
        tag, kind, values, offset = struct.unpack(order + "HHII", entry)
        size = _TIFF_SIZES.get(kind, 0) * values
        if tag in _TIFF_TAGS and size and (size <= 4 or offset + size <= end):
            kept.append(entry)
    kept_table = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4)
    return [(0, at), kept_table, (min(at + len(kept_table), end), end)]


def _avif(file: IO[bytes]) -> list[Part]:
    """Rename metadata items so that no decoder reads them; the orientation is a property of the picture."""
    at, end = 0, _size(file)
    for _ in range(16):
        length, kind = struct.unpack(">I4s", _exactly(file, at, 8))
        if kind == b"meta" and 8 <= length <= min(end - at, _MAX_METADATA_BYTES):
            meta = bytearray(_exactly(file, at, length))
            place = meta.find(b"infe")
            while place >= 0:
                # Version 3 has item numbers of 4 bytes, others of 2.
                item = place + (14 if meta[place + 4 : place + 5] == b"\3" else 12)
                if bytes(meta[item : item + 4]) in (b"Exif", b"mime"):
                    meta[item : item + 4] = b"skip"
                place = meta.find(b"infe", place + 4)
            return [(0, at), bytes(meta), (at + length, end)]
        if length < 8:
            break
        at += length
    raise _Unexpected


def concatenate(file: IO[bytes], parts: list[Part]) -> IO[bytes]:
    """Return a readable file made of `parts` of `file` in order."""
    return io.BufferedReader(_Concatenated(file, parts))


class _Concatenated(io.RawIOBase):
    def __init__(self, file: IO[bytes], parts: list[Part]) -> None:
        self._file = file
        self._parts = [part for part in parts if _length(part)]
        self._begins = [0, *accumulate(map(_length, self._parts))]
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._begins[-1])[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._begins[-1]:
            return 0
        index = bisect_right(self._begins, self._at) - 1
        part, skip = self._parts[index], self._at - self._begins[index]
        most = min(len(buffer), _length(part) - skip)
        data = part[skip : skip + most] if isinstance(part, bytes) else read_at(self._file, part[0] + skip, most)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _length(part: Part) -> int:
    return len(part) if isinstance(part, bytes) else part[1] - part[0]


def _size(file: IO[bytes]) -> int:
    return file.seek(0, io.SEEK_END)


def read_at(file: IO[bytes], at: int, count: int) -> bytes:
    """Read up to `count` bytes from a position of a file; fewer at its end."""
    file.seek(at)
    return file.read(count)


def _exactly(file: IO[bytes], at: int, count: int) -> bytes:
    data = read_at(file, at, count)
    if len(data) < count:
        raise _Unexpected
    return data
