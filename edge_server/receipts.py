"""What a session has taken and not told its client yet.

Promises that at most so few views stay untold that a client with the protocol's least number in flight goes on;
an acknowledgement for each would cost both sides more bytes than a view of few features has. Leaves when a
picture is complete to `pictures`.
"""

from collections.abc import Sequence

from shared.rpc.tofc.v1 import tofc_pb2

UNTOLD = 4  # views; so many are told together


class Receipts:
    """One session's."""

    def __init__(self) -> None:
        self._taken: dict[int, list[int]] = {}  # by ref

    def add(self, ref: int, index: int, *, last: bool) -> Sequence[tofc_pb2.ViewAck]:
        """Notes a view, after which nothing is missing of its picture if it is the `last`; what is to be told now."""
        self._taken.setdefault(ref, []).append(index)
        if not last and sum(map(len, self._taken.values())) < UNTOLD:
            return ()
        told = [tofc_pb2.ViewAck(ref=ref, indexes=indexes) for ref, indexes in self._taken.items()]
        self._taken.clear()
        return told
