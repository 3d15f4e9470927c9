"""One packet, of one view or several: a header, a body that is one long binary fraction, and a checksum.

    4 bits      grid code (3 bits) | merged (1 bit)
    [8 bits     only when the grid code is 7: the grid side, or 0 for a packet of several views]
    body        the views' layouts, then the range coder's payload: whole bytes
    12 bits     checksum

The body is a binary fraction below 1, written in as few bytes as possible, with zeros implied after its end. It is
in mixed radix: its leading digits are the layouts (`layout`), and the payload is the rest. So nothing is rounded to
whole bytes between the parts, or between the views. `docs/bitstream.md` specifies it in full. There is no version
number: a packet means nothing without its codec, whose identity covers the format.

Header and checksum share two bytes, because every byte is two per cent of a typical packet, and HTTP/2 over TCP or TLS
already detects damage. Views that leave together share both, which halves the bytes of small views.

Promises that every limit is checked before memory is allocated. Leaves to `codec` what the symbols mean, and the check
that the bytes are the canonical ones.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from tofc.codec.checksum import append_crc, strip_crc
from tofc.codec.layout import (
    EXPLICIT,
    SIDES,
    DigitReader,
    PacketLayout,
    check_side,
    read_one,
    read_several,
    write_digits,
)
from tofc.codec.range_coder import Interval
from tofc.errors import PacketError
from tofc.packet_limits import MOST_VIEWS

_SEVERAL = 0  # in the place of a grid side


def write(layouts: Sequence[PacketLayout], payload: Interval, *, qualities: int = 1) -> bytes:
    """Write a payload and the layouts of its views, at most `MOST_VIEWS`, as a packet. The codec has checked them."""
    digits = write_digits(layouts, qualities)
    low, whole = (digits.value << payload.bits) + payload.low, digits.base << payload.bits
    body = _shortest(low, payload.width, whole)
    if len(layouts) > 1:
        return append_crc(bytes([EXPLICIT << 1, _SEVERAL]) + body)
    return seal(layouts[0].grid, layouts[0].merged, body)


def read(
    data: bytes, *, max_side: int, max_feature_bits: int, qualities: int = 1, max_views: int = MOST_VIEWS
) -> tuple[list[PacketLayout], bytes]:
    """Read a packet: its views' layouts, and the payload as a binary fraction (zeros implied after its end).

    `max_side` bounds the grid, `max_feature_bits` the cost of one feature and `max_views` the views, so that a packet's
    size is limited before memory is allocated. Raises `PacketError`.
    """
    side, merged, outside = _parse_header(data)
    if side == _SEVERAL:
        _check_length(data, outside, [max_side] * max_views, max_feature_bits)
    else:
        check_side(side, max_side, spelt=outside == 3)
        _check_length(data, outside, [side], max_feature_bits)
    content = strip_crc(data)
    if append_crc(content) != data:
        raise PacketError("CHECKSUM_MISMATCH", "the checksum does not match: the packet is damaged, send it again")
    digits = DigitReader(content[outside - 1 :])
    if side != _SEVERAL:
        return [read_one(digits, side, merged, qualities)], digits.rest()
    layouts = read_several(digits, max_side, qualities, max_views)
    _check_length(data, outside, [one.grid for one in layouts], max_feature_bits)
    return layouts, digits.rest()


def seal(side: int, merged: bool, body: bytes) -> bytes:
    """Join header, body and checksum into one packet of one view."""
    code = SIDES.index(side) if side in SIDES else EXPLICIT
    head = bytes([code << 1 | merged]) if code != EXPLICIT else bytes([code << 1 | merged, side])
    return append_crc(head + body)


def _check_length(data: bytes, outside: int, sides: Sequence[int], max_feature_bits: int) -> None:
    # At most one bit a cell for the positions, `max_feature_bits` a feature, and less than 16 bytes for the rest.
    limit = outside + sum((side * side * (max_feature_bits + 1) + 7) // 8 + 16 for side in sides)
    if len(data) > limit:
        grids = f"a {sides[0]}×{sides[0]} grid" if len(sides) == 1 else f"{len(sides)} such views"
        raise PacketError(
            "TOO_LONG", f"a packet of {grids} has at most {limit} bytes, got {len(data)}: send only the packet"
        )


def _parse_header(data: bytes) -> tuple[int, bool, int]:
    """Return (grid side or _SEVERAL, merged, number of bytes outside the body)."""
    if len(data) < 2:
        raise PacketError("TOO_SHORT", f"a packet has at least 2 bytes, got {len(data)}: send it whole")
    code, merged = data[0] >> 5, bool(data[0] >> 4 & 1)
    if code != EXPLICIT:
        return SIDES[code], merged, 2
    if len(data) < 3:
        raise PacketError("TOO_SHORT", "the packet ends before its grid side: send it whole")
    side = (data[0] << 4 | data[1] >> 4) & 0xFF
    if side == _SEVERAL and merged:
        raise PacketError(
            "NOT_CANONICAL", "a packet of several views must not be marked as merged: it is damaged, send it again"
        )
    return side, merged, 3


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
