"""The views that one session has received and not acknowledged yet.

Promises that fewer than ACK_VIEWS views stay unacknowledged, because a client may stop and wait when it has that many
in flight. Acknowledging each view alone would cost more bytes than a small view itself. Leaves when a picture is
complete to `picture_cache`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tofc.v1 import tofc_pb2 as pb

ACK_VIEWS = 4  # views that are acknowledged together, as the protocol says


class AckBatcher:
    """Collects one session's views until they are acknowledged together."""

    def __init__(self) -> None:
        self._pending: dict[int, list[int]] = {}  # indexes, by ref

    def add(self, ref: int, index: int, *, last: bool) -> Sequence[pb.ViewAck]:
        """Note a view; `last` completes its picture. Return the acknowledgements to send now."""
        self._pending.setdefault(ref, []).append(index)
        if not last and sum(map(len, self._pending.values())) < ACK_VIEWS:
            return ()
        acks = [pb.ViewAck(ref=ref, indexes=indexes) for ref, indexes in self._pending.items()]
        self._pending.clear()
        return acks
