"""What views cost: how a codec of features codes each, and the bytes of the packets in which they leave together.

Promises that codecs whose bits are only counted get a header for each packet, as ours do. Leaves files, whose sizes
are known, to their methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tofc.codec.codec import Codec, CodedView
from tofc.packet_limits import VIEWS_PER_PACKET

HEADER = 2  # bytes of a packet's header and checksum, for codecs whose bits are only counted


@dataclass(frozen=True, eq=False)
class CodedCost:
    """A view as a real codec codes it."""

    codec: Codec
    view: CodedView


@dataclass(frozen=True)
class IdealCost:
    """The ideal bits of a view, without header."""

    bits: float


Cost = CodedCost | IdealCost | float  # or bytes


def packet_bytes(costs: Sequence[Cost]) -> float:
    """Return the bytes of the packets of a picture, by the costs of its views in their order.

    >>> packet_bytes([IdealCost(20.0)] * 13)
    36.5
    """
    groups = (costs[first : first + VIEWS_PER_PACKET] for first in range(0, len(costs), VIEWS_PER_PACKET))
    return sum(map(_bytes_of_one, groups))


def _bytes_of_one(costs: Sequence[Cost]) -> float:
    coded = [one for one in costs if isinstance(one, CodedCost)]
    if coded:
        return len(coded[0].codec.write([one.view for one in coded]))
    ideal = [one.bits for one in costs if isinstance(one, IdealCost)]
    if ideal:
        return HEADER + sum(ideal) / 8
    return sum(one for one in costs if isinstance(one, (int, float)))
