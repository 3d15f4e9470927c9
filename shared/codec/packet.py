"""One view's packet: header, one long binary fraction, checksum.

    4 bits      grid code (3 bits) | merged (1 bit)
    [8 bits     grid side, only when the grid code is 7]
    body        quality, n and positions (only when merged), then the range coder's payload: whole bytes
    12 bits     checksum

The body is a single number below 1, written in as few bytes as will do, zeros implied behind the end.
Its leading digits are the quality, n (base N − 1) and the positions' rank (base C(N, n)), its tail the
payload: mixed radix costs no rounding to whole bytes between the parts. ``docs/bitstream.md`` has it all
in full. There is no version: a packet means nothing without its codec, whose identity covers the format.

Header and checksum share two bytes, because every byte is a per cent of a typical packet and HTTP/2 over
TCP or TLS already checks.

Promises that every limit is checked before memory is taken. Leaves to ``codec`` what the symbols mean
and the test that the bytes are the only ones that say it.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from math import comb

from shared.codec import positions
from shared.codec.checksum import content_of, sealed
from shared.codec.coder import Interval

SIDES = (4, 6, 8, 9, 12, 13, 16)  # grid codes 0..6
EXPLICIT = 7  # grid code: the side follows in eight bits of its own


class PacketError(ValueError):
    """Bytes that are no packet. ``reason`` is for machines, the message for people.

    Reasons: TOO_SHORT, TOO_LONG, GRID_INVALID, COUNT_INVALID, CHECKSUM_MISMATCH, PAYLOAD_INVALID,
    NOT_CANONICAL.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which cells of a ``grid`` × ``grid`` view have a feature (``cells`` ascending, raster order), and how finely."""

    grid: int
    cells: tuple[int, ...]
    quality: int = 0  # below the codec's number of qualities

    @property
    def n(self) -> int:
        return len(self.cells)

    @property
    def merged(self) -> bool:
        return self.n < self.grid**2

    @property
    def header_bits(self) -> int:
        """Header and checksum: everything outside of the body."""
        return 16 if self.grid in SIDES else 24

    def digits(self, qualities: int) -> tuple[int, int]:
        """(value, base) of what precedes the payload: the quality, and n and the positions when merged."""
        if not self.merged:
            return self.quality, qualities
        sets = comb(self.grid**2, self.n)
        value = (self.quality * (self.grid**2 - 1) + self.n - 1) * sets + positions.rank(self.cells)
        return value, qualities * (self.grid**2 - 1) * sets


def write(layout: Layout, payload: Interval, *, qualities: int = 1) -> bytes:
    """The packet of a payload at a layout. Shapes were checked by the codec."""
    value, base = layout.digits(qualities)
    low, whole = (value << payload.bits) + payload.low, base << payload.bits
    return seal(layout.grid, layout.merged, _shortest(low, payload.width, whole))


def read(data: bytes, *, max_side: int, max_feature_bits: int, qualities: int = 1) -> tuple[Layout, bytes]:
    """A packet → its layout and the payload as a binary fraction (zeros implied behind its end).

    ``max_side`` bounds the grid, ``max_feature_bits`` what one feature may cost; both bound what a
    packet may ask for before any of it is taken. Raises ``PacketError``.
    """
    side, merged, outside = _parse_header(data, max_side)
    total = side * side
    # A feature adds at most one position and its own symbols; quality and coder add less than four words.
    limit = outside + (total * (max_feature_bits + 1) + 7) // 8 + 16
    if len(data) > limit:
        raise PacketError("TOO_LONG", f"{len(data)} bytes; a packet of a {side}×{side} grid has at most {limit}")
    content = content_of(data)
    if sealed(content) != data:
        raise PacketError("CHECKSUM_MISMATCH", "the checksum does not match: the packet is damaged, send it again")
    body = content[outside - 1 :]
    fraction, whole = int.from_bytes(body, "big"), 1 << 8 * len(body)
    quality, fraction = divmod(fraction * qualities, whole)
    cells = tuple(range(total))
    if merged:
        if total < 2:
            raise PacketError("COUNT_INVALID", "a grid of one cell cannot be merged")
        n, fraction = divmod(fraction * (total - 1), whole)
        number, fraction = divmod(fraction * comb(total, n + 1), whole)
        cells = tuple(positions.unrank(number, n + 1, total))
    return Layout(grid=side, cells=cells, quality=quality), fraction.to_bytes(len(body), "big")


def seal(side: int, merged: bool, body: bytes) -> bytes:
    """Header, body and checksum as one packet."""
    code = SIDES.index(side) if side in SIDES else EXPLICIT
    head = bytes([code << 1 | merged]) if code != EXPLICIT else bytes([code << 1 | merged, side])
    return sealed(head + body)


def _parse_header(data: bytes, max_side: int) -> tuple[int, bool, int]:
    """(grid side, merged, bytes that are not the body's)."""
    if len(data) < 2:
        raise PacketError("TOO_SHORT", f"{len(data)} bytes hold no packet: send it whole")
    code, merged, outside = data[0] >> 5, bool(data[0] >> 4 & 1), 2
    if code != EXPLICIT:
        side = SIDES[code]
    elif len(data) < 3:
        raise PacketError("TOO_SHORT", "the packet ends before its grid side: send it whole")
    else:
        side, outside = (data[0] << 4 | data[1] >> 4) & 0xFF, 3
        if side in SIDES:
            raise PacketError("NOT_CANONICAL", f"grid side {side} has a code of its own: leave out the extra byte")
    if not 1 <= side <= max_side:
        raise PacketError("GRID_INVALID", f"grid side {side}; this codec takes 1 to {max_side}")
    return side, merged, outside


def _shortest(low: int, width: int, whole: int) -> bytes:
    """The shortest binary fraction in [low, low + width) / whole; of those, the smallest."""

    zeros = (whole & -whole).bit_length() - 1  # nearly all of it: shifting is cheap, dividing such numbers is not
    odd, end = whole >> zeros, low + width

    def smallest(size: int) -> int:
        """The smallest number that is not below the interval, in 256^-size."""
        more = 8 * size - zeros
        return -((-low << more if more >= 0 else -low >> -more) // odd)

    def found(size: int) -> bool:
        more, up = 8 * size - zeros, smallest(size) * odd
        return up < end << more if more >= 0 else up << -more < end

    most = (whole.bit_length() - width.bit_length() + 8) // 8  # 256^most >= whole / width: one is sure to be there
    size = bisect_left(range(most), True, key=found)  # whoever fits in fewer bytes fits in more
    return smallest(size).to_bytes(size, "big")
