"""The size of a compressed picture, read from its header without a decoder.

    JPEG     markers ─→ frame header            WebP     RIFF, one lossy key frame
    AVIF     boxes, one item ─→ sequence header JPEG XL  bare codestream, default metadata

Promises that a decoder finds the same size in the same bytes, and that decoding a small file is cheap: no animation, no
grid of tiles, no hundred scans. So it accepts only files as encoders write them for one plain picture, not everything
that the four formats allow. Leaves decoding the pixels to `image_codec`.

>>> size_of(bytes.fromhex("ff0a789a0140160803"), "jxl")
(336, 336)
"""

from __future__ import annotations

from collections.abc import Iterator

from tofc.errors import ImageError

JPEG_SCANS = 32  # known encoders write up to 12; each costs the decoder a pass over the whole picture
#: per pixel: the memory that decoders of WebP and AVIF may need; they do not report that it is short
DECODER_BYTES = 16
_JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width : height
#: JPEG XL's flags of frames that use earlier frames (patches, low frequencies) or splines, and unknown flags
_JXL_REFUSED_FLAGS = ~(0x01 | 0x80)


class HeaderError(ImageError):
    """A file whose header is not accepted. The message begins with "it", which stands for the file."""


def size_of(data: bytes, codec: str) -> tuple[int, int]:
    """Read (width, height) in px from a complete file of `codec`: jpeg, webp, avif or jxl. Raises `HeaderError`."""
    try:
        size = {"jpeg": _jpeg, "webp": _webp, "avif": _avif, "jxl": _jxl}[codec](data)
    except IndexError:
        raise HeaderError("it ends within its header") from None
    if 0 in size:
        raise HeaderError(f"it claims {size[0]} × {size[1]} px")
    return size


def _jpeg(data: bytes) -> tuple[int, int]:
    if data[:2] != b"\xff\xd8":
        raise HeaderError("it does not begin as a JPEG does")
    if (scans := data.count(b"\xff\xda")) > JPEG_SCANS:  # these two bytes do not occur within a scan
        raise HeaderError(f"it has {scans} scans, but at most {JPEG_SCANS} are decoded")
    at = 2
    while True:
        if data[at] != 0xFF:
            raise HeaderError(f"it has no marker at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        length = _big(data, at + 2, 2)
        if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
            if data[at + 4] != 8 or data[at + 9] not in (1, 3):
                raise HeaderError(
                    f"it has {data[at + 9]} components of {data[at + 4]} bits, but only 1 or 3 of 8 bits are decoded"
                )
            return _big(data, at + 7, 2), _big(data, at + 5, 2)
        if not (0xDB <= marker <= 0xFE or marker == 0xC4) or length < 2:  # tables, application data, comments
            raise HeaderError(f"it has the marker {marker:#x} before its frame header")
        at += 2 + length


def _webp(data: bytes) -> tuple[int, int]:
    if data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8 ":
        raise HeaderError("it does not begin as a lossy WebP without alpha, metadata or animation does")
    length = _little(data, 16, 4)
    if _little(data, 4, 4) + 8 != len(data) or 20 + length + length % 2 != len(data):
        raise HeaderError(f"it has {len(data)} bytes, but its header says {_little(data, 4, 4) + 8}")
    if data[20] & 1 or data[23:26] != b"\x9d\x01\x2a":
        raise HeaderError("it does not begin with a key frame")
    return _little(data, 26, 2) & 0x3FFF, _little(data, 28, 2) & 0x3FFF


def _avif(data: bytes) -> tuple[int, int]:
    boxes = list(_boxes(data, 0, len(data)))
    if [kind for kind, _, _ in boxes] != [b"ftyp", b"meta", b"mdat"] or data[8:12] != b"avif":
        raise HeaderError("it is not one still picture as libavif writes it (ftyp, meta, mdat)")
    _, begin, end = boxes[1]
    (_, start, stop) = boxes[2]
    locations = [(left, right) for kind, left, right in _boxes(data, begin + 4, end) if kind == b"iloc"]
    one_item = bytes.fromhex("00000000 4400 0001")  # version 0, 4-byte offsets and lengths, one item
    if len(locations) != 1 or locations[0][1] - locations[0][0] != 22 or data[locations[0][0] :][:8] != one_item:
        raise HeaderError("it does not hold one item as libavif writes it")
    at = locations[0][0] + 8
    if data[at + 2 : at + 6] != b"\0\0\0\1" or (_big(data, at + 6, 4), _big(data, at + 10, 4)) != (start, stop - start):
        raise HeaderError("its item is not the whole of mdat")
    return _av1(data, start, stop)


def _av1(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Read the size from the sequence header of a series of AV1 units (OBUs), which must have one, and one frame."""
    size: tuple[int, int] | None = None
    frames = 0
    while at < end:
        head = data[at]
        kind = head >> 3 & 15
        if head & 0x87 != 2:  # with a size, without an extension
            raise HeaderError("its AV1 units have no sizes")
        length, at = _leb128(data, at + 1)
        if kind == 1 and size is None:
            size = _sequence(data[at : at + length])
        elif kind == 1 or (kind in (3, 4, 6) and size is None):
            raise HeaderError("it does not have one AV1 sequence header before its frame")
        frames += kind in (3, 6)
        # Every further frame would be decoded too, and a frame can be as small as a kilobyte.
        if frames > 1 or kind in (7, 8) or (kind == 4 and not frames):
            raise HeaderError("it has more than one AV1 frame")
        at += length
    if size is None or at != end:
        raise HeaderError("its AV1 units do not fill mdat")
    return size


def _sequence(data: bytes) -> tuple[int, int]:
    bits = _Bits(data, most_first=True)
    bits.take(3)  # profile
    if bits.take(2) != 3:  # a still picture, and a reduced header: then no frame can override the size
        raise HeaderError("its AV1 sequence is not a still picture with a reduced header")
    bits.take(5)  # level
    wide, high = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(wide) + 1, bits.take(high) + 1


def _jxl(data: bytes) -> tuple[int, int]:
    if data[:2] != b"\xff\x0a":
        raise HeaderError("it does not begin as a bare JPEG XL codestream does")
    bits = _Bits(data[2:34], most_first=False)
    width, height = _jxl_sides(bits)
    if not bits.take(1):  # all default: one upright frame of 8 bits, no preview, no further channels
        raise HeaderError("its JPEG XL metadata is not that of a plain lossy picture")
    if not bits.take(1):
        raise HeaderError("its JPEG XL colours use a custom transform")
    bits.align()
    if not _jxl_only_frame(bits):
        raise HeaderError("it has more than one JPEG XL frame")
    return width, height


def jxl_size(data: bytes) -> tuple[int, int]:
    """Read (width, height) in px from the beginning of any JPEG XL file, bare or in boxes. Raises `HeaderError`."""
    at, kind = 0, b""
    try:
        while data[at : at + 2] != b"\xff\x0a":
            length, kind = _big(data, at, 4), data[at + 4 : at + 8]
            head = 16 if length == 1 else 8
            if kind in (b"jxlc", b"jxlp"):
                at += head + (4 if kind == b"jxlp" else 0)  # a partial codestream begins with its index
                if data[at : at + 2] != b"\xff\x0a":
                    break
            elif (length := _big(data, at + 8, 8) if length == 1 else length) < head:
                break
            else:
                at += length
        if data[at : at + 2] == b"\xff\x0a":
            return _jxl_sides(_Bits(data[at + 2 : at + 34], most_first=False))
    except IndexError:
        pass
    raise HeaderError("it does not contain its size")


def _jxl_sides(bits: _Bits) -> tuple[int, int]:
    small = bits.take(1)
    height = _jxl_side(bits, small)
    ratio = bits.take(3)
    width = height * _JXL_RATIOS[ratio - 1][0] // _JXL_RATIOS[ratio - 1][1] if ratio else _jxl_side(bits, small)
    return width, height


def _jxl_only_frame(bits: _Bits) -> bool:
    """Whether a frame header (ISO/IEC 18181-1, F.2) is that of the only frame: a whole picture, and the last one."""
    if bits.take(1):  # all default, and the last
        return True
    regular, modular = bits.take(2) == 0, bits.take(1)
    flags = (0, 1, 17, 1 << 10)[selector := bits.take(2)] + bits.take((0, 4, 8, 0)[selector])
    bits.take(2)  # upsampling
    bits.take(2 if modular else 6)  # group size, or scales of the colour channels
    if not regular or flags & _JXL_REFUSED_FLAGS or bits.take(2):  # encoders write one pass; several have more fields
        return False
    return not bits.take(1) and bits.take(2) == 0 and bool(bits.take(1))  # not cropped, replaces, is the last


def _jxl_side(bits: _Bits, small: int) -> int:
    return 8 * (bits.take(5) + 1) if small else 1 + bits.take((9, 13, 18, 30)[bits.take(2)])


class _Bits:
    """Reads numbers of given sizes in bits from the first 32 bytes. Raises `IndexError` at the end."""

    def __init__(self, data: bytes, *, most_first: bool) -> None:
        self._most_first = most_first
        self._value = int.from_bytes(data[:32], "big" if most_first else "little")
        self._total = 8 * min(len(data), 32)
        self._at = 0

    def align(self) -> None:
        """Skip to the next whole byte."""
        self._at += -self._at % 8

    def take(self, count: int) -> int:
        """Read a number of `count` bits."""
        self._at += count
        if self._at > self._total:
            raise IndexError
        shift = self._total - self._at if self._most_first else self._at - count
        return self._value >> shift & ((1 << count) - 1)


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield each box in data[at:end]: its kind, and where its content begins and ends."""
    while at < end:
        length = _big(data, at, 4)
        if length < 8 or at + length > end:
            raise HeaderError(f"its box at byte {at} claims {length} bytes, but {end - at} are left")
        yield data[at + 4 : at + 8], at + 8, at + length
        at += length


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """Read a LEB128 number: return it and the position after it."""
    value = 0
    for place in range(4):
        value |= (data[at] & 127) << 7 * place
        at += 1
        if not data[at - 1] & 128:
            return value, at
    raise HeaderError("its AV1 unit claims more than 256 MB")


def _big(data: bytes, at: int, count: int) -> int:
    return int.from_bytes(_exactly(data, at, count), "big")


def _little(data: bytes, at: int, count: int) -> int:
    return int.from_bytes(_exactly(data, at, count), "little")


def _exactly(data: bytes, at: int, count: int) -> bytes:
    if at + count > len(data):
        raise IndexError
    return data[at : at + count]
