"""One view's packet: header, one long binary fraction, checksum.

    byte 0      version (4 bits) | grid code (3 bits) | merged (1 bit)
    [byte 1     grid side, only when the grid code is 7]
    body        n and positions (only when merged), then the range coder's payload
    2 bytes     checksum, little-endian

The body is a single number below 1, written in as few bytes as will do, zeros implied behind the end.
Its leading digits are n (base N − 1) and the positions' rank (base C(N, n)), its tail the payload: mixed
radix costs no rounding to whole bytes between the parts. ``docs/bitstream.md`` has it all in full.

The checksum is CRC-16 (polynomial 0x1021, initial 0xFFFF). Two bytes, because four would be 4 % of a
typical packet and HTTP/2 over TCP or TLS already checks; a true 16-bit polynomial rather than half a
CRC-32C, because it is sure to find one or two flipped bits and any burst up to 16 bits, which a
truncated CRC is not.

Promises that every limit is checked before memory is taken. Leaves to ``codec`` what the symbols mean
and the test that the bytes are the only ones that say it.
"""

from __future__ import annotations

from binascii import crc_hqx
from dataclasses import dataclass
from math import comb

from shared.codec import positions
from shared.codec.coder import Interval

VERSION = 1
SIDES = (4, 6, 8, 9, 12, 13, 16)  # grid codes 0..6
EXPLICIT = 7  # grid code: the side follows in a byte of its own
CHECKSUM_BYTES = 2


class PacketError(ValueError):
    """Bytes that are no packet. ``reason`` is for machines, the message for people.

    Reasons: TOO_SHORT, TOO_LONG, VERSION_UNSUPPORTED, GRID_INVALID, COUNT_INVALID, CHECKSUM_MISMATCH,
    PAYLOAD_INVALID, NOT_CANONICAL.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which cells of a ``grid`` × ``grid`` view have a feature: ``cells`` ascending, raster order."""

    grid: int
    cells: tuple[int, ...]

    @property
    def n(self) -> int:
        return len(self.cells)

    @property
    def merged(self) -> bool:
        return self.n < self.grid**2

    @property
    def header_bits(self) -> int:
        """Everything that is neither positions nor payload, the checksum included."""
        return 8 * (len(_header(self)) + CHECKSUM_BYTES)

    def digits(self) -> tuple[int, int]:
        """(value, base) of what precedes the payload: n and the positions when merged, else (0, 1)."""
        if not self.merged:
            return 0, 1
        sets = comb(self.grid**2, self.n)
        return (self.n - 1) * sets + positions.rank(self.cells), (self.grid**2 - 1) * sets


def write(layout: Layout, payload: Interval) -> bytes:
    """The packet of a payload at a layout. Shapes were checked by the codec."""
    value, base = layout.digits()
    low, whole = (value << payload.bits) + payload.low, base << payload.bits
    packet = _header(layout) + _shortest(low, payload.width, whole)
    return packet + _checksum(packet)


def read(data: bytes, *, max_side: int, max_feature_bits: int) -> tuple[Layout, bytes]:
    """A packet → its layout and the payload as a binary fraction (zeros implied behind its end).

    ``max_side`` bounds the grid, ``max_feature_bits`` what one feature may cost; both bound what a
    packet may ask for before any of it is taken. Raises ``PacketError``.
    """
    side, merged, start = _parse_header(data, max_side)
    total = side * side
    if len(data) < start + CHECKSUM_BYTES:
        raise PacketError("TOO_SHORT", f"{len(data)} bytes hold no packet: send it whole")
    # A feature adds at most one position and its own symbols; the coder adds less than three words.
    limit = start + CHECKSUM_BYTES + (total * (max_feature_bits + 1) + 7) // 8 + 12
    if len(data) > limit:
        raise PacketError("TOO_LONG", f"{len(data)} bytes; a packet of a {side}×{side} grid has at most {limit}")
    end = len(data) - CHECKSUM_BYTES
    if data[end:] != _checksum(data[:end]):
        raise PacketError("CHECKSUM_MISMATCH", "the checksum does not match: the packet is damaged, send it again")
    body = data[start:end]
    if not merged:
        return Layout(grid=side, cells=tuple(range(total))), body
    if total < 2:
        raise PacketError("COUNT_INVALID", "a grid of one cell cannot be merged")
    fraction, whole = int.from_bytes(body, "big"), 1 << 8 * len(body)
    n, fraction = divmod(fraction * (total - 1), whole)
    n += 1
    number, fraction = divmod(fraction * comb(total, n), whole)
    layout = Layout(grid=side, cells=tuple(positions.unrank(number, n, total)))
    return layout, fraction.to_bytes(len(body), "big")


def _header(layout: Layout) -> bytes:
    code = SIDES.index(layout.grid) if layout.grid in SIDES else EXPLICIT
    first = VERSION << 4 | code << 1 | layout.merged
    return bytes([first]) if code != EXPLICIT else bytes([first, layout.grid])


def _parse_header(data: bytes, max_side: int) -> tuple[int, bool, int]:
    """(grid side, merged, where the body starts)."""
    if len(data) < 1:
        raise PacketError("TOO_SHORT", "an empty packet: send at least a header")
    version, code, merged = data[0] >> 4, data[0] >> 1 & 7, bool(data[0] & 1)
    if version != VERSION:
        raise PacketError("VERSION_UNSUPPORTED", f"packet version {version}; this side reads version {VERSION}: update")
    if code != EXPLICIT:
        side, start = SIDES[code], 1
    elif len(data) < 2:
        raise PacketError("TOO_SHORT", "the packet ends before its grid side: send it whole")
    else:
        side, start = data[1], 2
        if side in SIDES:
            raise PacketError("NOT_CANONICAL", f"grid side {side} has a code of its own: leave out the extra byte")
    if not 1 <= side <= max_side:
        raise PacketError("GRID_INVALID", f"grid side {side}; this codec takes 1 to {max_side}")
    return side, merged, start


def _shortest(low: int, width: int, whole: int) -> bytes:
    """The shortest binary fraction in [low, low + width) / whole; of those, the smallest."""
    size = (whole.bit_length() - width.bit_length() + 8) // 8  # 256^size >= whole / width: one is sure to be there
    first = -(-(low << 8 * size) // whole)
    last = -(-(low + width << 8 * size) // whole) - 1
    while size and (shorter := -(-first // 256)) <= last // 256:  # with luck, one that ends in zeros as well
        first, last, size = shorter, last // 256, size - 1
    return first.to_bytes(size, "big")


def _checksum(data: bytes) -> bytes:
    return crc_hqx(data, 0xFFFF).to_bytes(CHECKSUM_BYTES, "little")
