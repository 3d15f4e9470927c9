"""Which features the views of a packet have, as digits of its body.

    one view:   quality [, n and positions, if merged]                                  (grid side and merged: header)
    several:    number of views ─ runs of equal views (length, grid side, merged, quality) ─ n and positions of each

Promises that every layout has one sequence of digits, and that each side is checked before anything of its size is
computed. Leaves header and payload to `packet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import comb

from tofc.codec import positions
from tofc.errors import PacketError
from tofc.packet_limits import MOST_VIEWS

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
        """Bits of header and checksum, everything outside the body, if the view has a packet of its own."""
        return 16 if self.grid in SIDES else 24

    def digits(self, qualities: int) -> tuple[int, int]:
        """Return (value, base) of the leading digits of a packet of this view only."""
        digits = DigitWriter()
        _write_own(digits, self, qualities)
        return digits.value, digits.base


class DigitWriter:
    """A number in mixed radix, written from its leading digit.

    >>> digits = DigitWriter()
    >>> digits.add(2, 3)
    >>> digits.add(4, 10)
    >>> digits.value, digits.base
    (24, 30)
    """

    def __init__(self) -> None:
        self.value, self.base = 0, 1

    def add(self, digit: int, base: int) -> None:
        """Append a digit, 0..base−1."""
        self.value, self.base = self.value * base + digit, self.base * base


class DigitReader:
    """The leading digits of a binary fraction number / 256^size in mixed radix; `number` is what is left.

    >>> digits = DigitReader(bytes([24 * 256 // 30 + 1]))
    >>> digits.take(3), digits.take(10)
    (2, 4)
    """

    def __init__(self, body: bytes) -> None:
        self._size, self._whole = len(body), 1 << 8 * len(body)
        self.number = int.from_bytes(body, "big")

    def take(self, base: int) -> int:
        """Return the next digit, 0..base−1."""
        digit, self.number = divmod(self.number * base, self._whole)
        return digit

    def rest(self) -> bytes:
        """Return the fraction that is left."""
        return self.number.to_bytes(self._size, "big")


def write_digits(layouts: Sequence[PacketLayout], qualities: int) -> DigitWriter:
    """Return the digits of all views of a packet."""
    digits = DigitWriter()
    if len(layouts) == 1:
        _write_own(digits, layouts[0], qualities)
        return digits
    digits.add(len(layouts) - 2, MOST_VIEWS - 1)
    left = len(layouts)
    for (side, merged, quality), run in groupby(layouts, lambda one: (one.grid, one.merged, one.quality)):
        length = len(list(run))
        digits.add(length - 1, left)
        left -= length
        digits.add(SIDES.index(side) if side in SIDES else EXPLICIT, EXPLICIT + 1)
        if side not in SIDES:
            digits.add(side, 256)
        digits.add(int(merged), 2)
        digits.add(quality, qualities)
    for layout in layouts:
        _write_cells(digits, layout)
    return digits


def read_one(digits: DigitReader, side: int, merged: bool, qualities: int) -> PacketLayout:
    """Read the digits of a packet of one view, whose header says its side and whether it is merged."""
    quality = digits.take(qualities)
    return PacketLayout(grid=side, cells=_read_cells(digits, side, merged), quality=quality)


def read_several(digits: DigitReader, max_side: int, qualities: int, max_views: int) -> list[PacketLayout]:
    """Read the digits of a packet of several views. Raises `PacketError`."""
    views: list[tuple[int, bool, int]] = []
    left = digits.take(MOST_VIEWS - 1) + 2
    if left > max_views:
        raise PacketError(
            "SEVERAL_VIEWS", f"the packet has {left} views, at most {max_views} were expected: decode it as several"
        )
    while left:
        length = digits.take(left) + 1
        left -= length
        code = digits.take(EXPLICIT + 1)
        side = digits.take(256) if code == EXPLICIT else SIDES[code]
        check_side(side, max_side, spelt=code == EXPLICIT)
        merged = bool(digits.take(2))
        views += [(side, merged, digits.take(qualities))] * length
    return [
        PacketLayout(grid=side, cells=_read_cells(digits, side, merged), quality=quality)
        for side, merged, quality in views
    ]


def check_side(side: int, max_side: int, *, spelt: bool) -> None:
    """Raise `PacketError` for a grid side that the codec does not take, or that is spelt although it has a code."""
    if spelt and side in SIDES:
        raise PacketError(
            "NOT_CANONICAL",
            f"grid side {side} must be written as its grid code: the packet is damaged, send it again",
        )
    if not 1 <= side <= max_side:
        raise PacketError(
            "GRID_INVALID",
            f"the grid side must be 1 to {max_side} for this codec, got {side}: use a packet of the same codec",
        )


def _write_own(digits: DigitWriter, layout: PacketLayout, qualities: int) -> None:
    digits.add(layout.quality, qualities)
    _write_cells(digits, layout)


def _write_cells(digits: DigitWriter, layout: PacketLayout) -> None:
    if layout.merged:
        total = layout.grid**2
        digits.add(layout.n - 1, total - 1)
        digits.add(positions.rank(layout.cells), comb(total, layout.n))


def _read_cells(digits: DigitReader, side: int, merged: bool) -> tuple[int, ...]:
    total = side * side
    if not merged:
        return tuple(range(total))
    if total < 2:
        raise PacketError(
            "COUNT_INVALID", "a packet of one cell must not be merged: the packet is damaged, send it again"
        )
    n = digits.take(total - 1) + 1
    return tuple(positions.unrank(digits.take(comb(total, n)), n, total))
