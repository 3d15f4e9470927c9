"""An image file without what does not decide its pixels: text, colour profiles, previews, checksums of such.

    file ─ walk its chunks, segments, boxes or tags ─ keep those of the pixels, and of which side is up ─→ file

Promises that metadata which is too large, damaged or cut off is as if it were not there, that a file which lacks only
its end has one, and that this takes no memory worth naming: the result reads from the file itself. A file that is
built in an unexpected way is given back whole. Leaves the pixels, and whether they are all there, to the decoder.

>>> import io
>>> from PIL import Image
>>> buffer = io.BytesIO()
>>> Image.new("1", (4, 4)).save(buffer, "PNG", icc_profile=b"not a profile")
>>> b"not a profile" in bare(buffer).read(), Image.open(bare(buffer)).size
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

Part = bytes | tuple[int, int]  # as it is, or (begin, end) in the file

_MOST_METADATA = 1 << 20  # bytes of a kept piece; what says which side is up has a few hundred
_MOST_PIECES = 10_000
#: how many bytes say what is transparent, by a PNG's type of colour
_PNG_CLEAR = {b"\0": range(2, 3), b"\2": range(6, 7), b"\3": range(1, 257)}
#: of a TIFF's tags those that say where its pixels are and what they mean (TIFF 6.0, and libtiff's own)
_TIFF_TAGS = frozenset(
    (254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332)
) | {334, 336, 338, 339, 340, 341, 347, *range(512, 522), 529, 530, 531, 532}
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}


def bare(file: IO[bytes]) -> IO[bytes]:
    """``file`` from its begin, for a decoder: without its metadata if it is PNG, JPEG, WebP, TIFF or AVIF."""
    file.seek(0)
    head = file.read(12)
    try:
        if head[:8] == b"\x89PNG\r\n\x1a\n":
            return joined(file, _png(file))
        if head[:2] == b"\xff\xd8":
            return joined(file, _jpeg(file))
        if head[:4] == b"RIFF" and head[8:] == b"WEBP":
            return joined(file, _webp(file))
        if head[:4] in (b"II*\0", b"MM\0*"):
            return joined(file, _tiff(file))
        if head[4:8] == b"ftyp":
            return joined(file, _avif(file))
    except _Unexpected:
        pass
    file.seek(0)
    return file


class _Unexpected(Exception):
    """Bytes that are not built as the format says."""


def _png(file: IO[bytes]) -> list[Part]:
    end = _size(file)
    before: list[Part] = [(0, 8)]
    begin = stop = 0  # the run of IDAT: further ones belong to no picture
    cut: list[Part] = []  # the last of them, where the file ends within it
    at, colour = 8, b""
    while len(before) < _MOST_PIECES and len(head := _read(file, at, 8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        after = at + 12 + length
        if kind == b"IHDR":
            colour = _read(file, at + 17, 1)
        if kind == b"IDAT" and (not begin or stop == at):
            begin = begin or at
            if after > end:
                there = min(length, end - at - 8)
                cut = [struct.pack(">I4s", there, kind), (at + 8, at + 8 + there), bytes(4)]
                stop = at
                break
            stop = after
        elif after <= end and (
            (not begin and _png_matters(file, at, length, kind, colour)) or _png_turns(file, at, length, kind)
        ):
            before.append((at, after))
        if kind == b"IEND" or not kind.isalpha() or after > end:
            break
        at = after
    return [*before, (begin, stop), *cut, bytes.fromhex("00000000 49454e44 ae426082")]


def _png_matters(file: IO[bytes], at: int, length: int, kind: bytes, colour: bytes) -> bool:
    """Whether a chunk before the pixels decides them. A palette beside colours is a suggestion."""
    if kind == b"tRNS":
        return length in _PNG_CLEAR.get(colour, ()) and _png_is_whole(file, at, length)
    return kind == b"IHDR" or (kind == b"PLTE" and colour == b"\3")


def _png_is_whole(file: IO[bytes], at: int, length: int) -> bool:
    return struct.pack(">I", zlib.crc32(_read(file, at + 4, 4 + length))) == _read(file, at + 8 + length, 4)


def _png_turns(file: IO[bytes], at: int, length: int, kind: bytes) -> bool:
    """Whether a chunk may say which side is up: EXIF or XMP, well-formed."""
    if kind not in (b"eXIf", b"iTXt", b"zTXt", b"tEXt") or length > _MOST_METADATA:
        return False
    if not _png_is_whole(file, at, length):
        return False
    if kind == b"eXIf":
        return True
    keyword, _, text = _read(file, at + 8, length).partition(b"\0")
    if keyword not in (b"XML:com.adobe.xmp", b"Raw profile type exif"):
        return False
    packed = text[1:]  # after the method
    if kind == b"iTXt":
        packed = text[2:].split(b"\0", 2)[-1] if text[:1] == b"\1" else b""
    if kind == b"tEXt" or not packed:
        return True
    try:
        unpacker = zlib.decompressobj()
        unpacker.decompress(packed, _MOST_METADATA)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail


def _jpeg(file: IO[bytes]) -> list[Part]:
    parts: list[Part] = [(0, 2)]
    for marker, begin, end in _segments(file):
        if marker == 0xDA:
            return [*parts, (begin, _size(file))]
        if not 0xE0 <= marker <= 0xFE or _jpeg_matters(marker, _read(file, begin + 4, end - begin - 4)):
            parts.append((begin, end))
    raise _Unexpected


def _jpeg_matters(marker: int, data: bytes) -> bool:
    """Whether application data says what the colours are, or which side is up. What is shorter a decoder ignores."""
    return (
        (marker == 0xE0 and data[:5] == b"JFIF\0" and len(data) >= 14)
        or (marker == 0xEE and data[:5] == b"Adobe" and len(data) >= 12)
        or (marker == 0xE1 and data.startswith((b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")))
    )


def _segments(file: IO[bytes]) -> Iterator[tuple[int, int, int]]:
    """(marker, begin, end) of a JPEG's segments up to the first scan; what lies between them is skipped."""
    at, end = 2, _size(file)
    for _ in range(_MOST_PIECES):
        window = _read(file, at, 1 << 12)
        skipped = next((i for i, pair in enumerate(pairwise(window)) if _is_marker(*pair)), None)
        if skipped is None:
            return
        at += skipped
        marker = window[skipped + 1]
        length = int.from_bytes(_read(file, at + 2, 2), "big")
        if length < 2 or at + 2 + length > end:
            at += 2  # as a decoder does: look for the next
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
    for _ in range(_MOST_PIECES):
        head = _read(file, at, 8)
        if len(head) < 8:
            break
        kind, length = struct.unpack("<4sI", head)
        stop = min(at + 8 + length + length % 2, end)
        if kind in (b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L") or (
            kind in (b"EXIF", b"XMP ") and at + 8 + length <= end and length <= _MOST_METADATA
        ):
            found.setdefault(kind, (at, stop))
        at = stop
    if b"VP8X" in found:
        begin, stop = found[b"VP8X"]
        flags = _read(file, begin + 8, 1)[0] & 0x12 | 0x08 * (b"EXIF" in found) | 0x04 * (b"XMP " in found)
        found[b"VP8X"] = _read(file, begin, 8) + bytes([flags]) + _read(file, begin + 9, stop - begin - 9)
    elif not (found := {kind: part for kind, part in found.items() if kind in (b"VP8 ", b"VP8L")}):
        raise _Unexpected
    order = (b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L", b"EXIF", b"XMP ")
    parts = [found[kind] for kind in order if kind in found]
    return [b"RIFF" + struct.pack("<I", 4 + sum(map(_length, parts))) + b"WEBP", *parts]


def _tiff(file: IO[bytes]) -> list[Part]:
    """The first picture's tags, in their place: fewer of them, and no other picture."""
    order = "<" if _read(file, 0, 2) == b"II" else ">"
    end = _size(file)
    (at,) = struct.unpack(order + "I", _exactly(file, 4, 4))
    (count,) = struct.unpack(order + "H", _exactly(file, at, 2))
    table = _exactly(file, at + 2, 12 * count)
    kept = []
    for entry in (table[i : i + 12] for i in range(0, len(table), 12)):
        tag, kind, many, where = struct.unpack(order + "HHII", entry)
        size = _TIFF_SIZES.get(kind, 0) * many
        if tag in _TIFF_TAGS and size and (size <= 4 or where + size <= end):
            kept.append(entry)
    mended = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4)
    return [(0, at), mended, (min(at + len(mended), end), end)]


def _avif(file: IO[bytes]) -> list[Part]:
    """With items of metadata named so that nobody reads them. Which side is up is said by a property of the picture."""
    at, end = 0, _size(file)
    for _ in range(16):
        length, kind = struct.unpack(">I4s", _exactly(file, at, 8))
        if kind == b"meta" and 8 <= length <= min(end - at, _MOST_METADATA):
            meta = bytearray(_exactly(file, at, length))
            place = meta.find(b"infe")
            while place >= 0:
                item = place + (14 if meta[place + 4 : place + 5] == b"\3" else 12)  # its number has 4 bytes, or 2
                if bytes(meta[item : item + 4]) in (b"Exif", b"mime"):
                    meta[item : item + 4] = b"skip"
                place = meta.find(b"infe", place + 4)
            return [(0, at), bytes(meta), (at + length, end)]
        if length < 8:
            break
        at += length
    raise _Unexpected


def joined(file: IO[bytes], parts: list[Part]) -> IO[bytes]:
    """``parts`` of ``file`` one after the other, as a file to read."""
    return io.BufferedReader(_Joined(file, parts))


class _Joined(io.RawIOBase):
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
        data = part[skip : skip + most] if isinstance(part, bytes) else _read(self._file, part[0] + skip, most)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _length(part: Part) -> int:
    return len(part) if isinstance(part, bytes) else part[1] - part[0]


def _size(file: IO[bytes]) -> int:
    return file.seek(0, io.SEEK_END)


def _read(file: IO[bytes], at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


def _exactly(file: IO[bytes], at: int, count: int) -> bytes:
    data = _read(file, at, count)
    if len(data) < count:
        raise _Unexpected
    return data
