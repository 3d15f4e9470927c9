"""One view's packet: a header, a body that is one long binary fraction, and a checksum.

    4 bits      grid code (3 bits) | merged (1 bit)
    [8 bits     grid side, only when the grid code is 7]
    body        quality, n and positions (only when merged), then the range coder's payload: whole bytes
    12 bits     checksum

The body is a binary fraction below 1, written in as few bytes as possible, with zeros implied after its end. It is
in mixed radix: its leading digits are the quality (base Q), n (base N − 1) and the positions' rank (base C(N, n)), and
the payload is the rest. So nothing is rounded to whole bytes between the parts. `docs/bitstream.md` specifies it in
full. There is no version number: a packet means nothing without its codec, whose identity covers the format.

Header and checksum share two bytes, because every byte is two per cent of a typical packet, and HTTP/2 over TCP or TLS
already detects damage.

Promises that every limit is checked before memory is allocated. Leaves to `codec` what the symbols mean, and the check
that the bytes are the canonical ones.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from math import comb

from tofc.codec import positions
from tofc.codec.checksum import append_crc, strip_crc
from tofc.codec.range_coder import Interval
from tofc.errors import PacketError

SIDES = (4, 6, 8, 9, 12, 13, 16)  # grid codes 0..6
EXPLICIT = 7  # grid code: the side follows in eight more bits


@dataclass(frozen=True, kw_only=True)
class PacketLayout:
    """Which cells of a `grid` × `grid` view have a feature (ascending raster indices), and at which quality."""

    grid: int
    cells: tuple[int, ...]
    quality: int = 0  # below the codec's number of qualities

    @property
    def n(self) -> int:
        """Number of features."""
        return len(self.cells)

    @property
    def merged(self) -> bool:
        """Whether there are fewer features than cells."""
        return self.n < self.grid**2

    @property
    def header_bits(self) -> int:
        """Bits of header and checksum: everything outside the body."""
        return 16 if self.grid in SIDES else 24

    def digits(self, qualities: int) -> tuple[int, int]:
        """Return (value, base) of the leading digits: the quality and, when merged, n and the positions."""
        if not self.merged:
            return self.quality, qualities
        sets = comb(self.grid**2, self.n)
        value = (self.quality * (self.grid**2 - 1) + self.n - 1) * sets + positions.rank(self.cells)
        return value, qualities * (self.grid**2 - 1) * sets


def write(layout: PacketLayout, payload: Interval, *, qualities: int = 1) -> bytes:
    """Write a payload and its layout as a packet. The codec has checked the shapes."""
    value, base = layout.digits(qualities)
    low, whole = (value << payload.bits) + payload.low, base << payload.bits
    return seal(layout.grid, layout.merged, _shortest(low, payload.width, whole))


def read(data: bytes, *, max_side: int, max_feature_bits: int, qualities: int = 1) -> tuple[PacketLayout, bytes]:
    """Read a packet: its layout, and the payload as a binary fraction (zeros implied after its end).

    `max_side` bounds the grid and `max_feature_bits` the cost of one feature, so that a packet's size is limited
    before memory is allocated. Raises `PacketError`.
    """
    side, merged, outside = _parse_header(data, max_side)
    total = side * side
    # At most one bit a cell for the positions, `max_feature_bits` a feature, and less than 16 bytes for the rest.
    limit = outside + (total * (max_feature_bits + 1) + 7) // 8 + 16
    if len(data) > limit:
        raise PacketError(
            "TOO_LONG",
            f"a packet of a {side}×{side} grid has at most {limit} bytes, got {len(data)}: send only the packet",
        )
    content = strip_crc(data)
    if append_crc(content) != data:
        raise PacketError("CHECKSUM_MISMATCH", "the checksum does not match: the packet is damaged, send it again")
    body = content[outside - 1 :]
    fraction, whole = int.from_bytes(body, "big"), 1 << 8 * len(body)
    quality, fraction = divmod(fraction * qualities, whole)
    cells = tuple(range(total))
    if merged:
        if total < 2:
            raise PacketError(
                "COUNT_INVALID", "a packet of one cell must not be merged: the packet is damaged, send it again"
            )
        fewer, fraction = divmod(fraction * (total - 1), whole)
        n = fewer + 1
        rank, fraction = divmod(fraction * comb(total, n), whole)
        cells = tuple(positions.unrank(rank, n, total))
    return PacketLayout(grid=side, cells=cells, quality=quality), fraction.to_bytes(len(body), "big")


def seal(side: int, merged: bool, body: bytes) -> bytes:
    """Join header, body and checksum into one packet."""
    code = SIDES.index(side) if side in SIDES else EXPLICIT
    head = bytes([code << 1 | merged]) if code != EXPLICIT else bytes([code << 1 | merged, side])
    return append_crc(head + body)


def _parse_header(data: bytes, max_side: int) -> tuple[int, bool, int]:
    """Return (grid side, merged, number of bytes outside the body)."""
    if len(data) < 2:
        raise PacketError("TOO_SHORT", f"a packet has at least 2 bytes, got {len(data)}: send it whole")
    code, merged, outside = data[0] >> 5, bool(data[0] >> 4 & 1), 2
    if code != EXPLICIT:
        side = SIDES[code]
    elif len(data) < 3:
        raise PacketError("TOO_SHORT", "the packet ends before its grid side: send it whole")
    else:
        side, outside = (data[0] << 4 | data[1] >> 4) & 0xFF, 3
        if side in SIDES:
            raise PacketError(
                "NOT_CANONICAL",
                f"grid side {side} must be written as its grid code: the packet is damaged, send it again",
            )
    if not 1 <= side <= max_side:
        raise PacketError(
            "GRID_INVALID",
            f"the grid side must be 1 to {max_side} for this codec, got {side}: use a packet of the same codec",
        )
    return side, merged, outside


def _shortest(low: int, width: int, whole: int) -> bytes:
    """Return the shortest binary fraction in [low, low + width) / whole; among those, the smallest."""
    # `whole` is odd · 2^zeros, with many zeros: shifting such long numbers is cheap, dividing them is not.
    zeros = (whole & -whole).bit_length() - 1
    odd, end = whole >> zeros, low + width

    def smallest(size: int) -> int:
        """Return the smallest k for which k / 256^size is not below the interval."""
        shift = 8 * size - zeros
        return -((-low << shift if shift >= 0 else -low >> -shift) // odd)

    def fits(size: int) -> bool:
        """Whether that fraction is inside the interval."""
        shift, point = 8 * size - zeros, smallest(size) * odd
        return point < end << shift if shift >= 0 else point << -shift < end

    most = (whole.bit_length() - width.bit_length() + 8) // 8  # 256^most >= whole / width, so one fits
    size = bisect_left(range(most), True, key=fits)  # if it fits in fewer bytes, it fits in more
    return smallest(size).to_bytes(size, "big")
