"""The numbers of a session that are not sent, because both sides count them alike.

    device   request ─→ shorten ══ wire ══ restore ─→ request   server

In a session that asks about one picture at a time nothing but the picture's identity, its packets and the question's
text is left of a request: 12 bytes of numbers for a new picture become none.

Promises that `restore` reverses `shorten` when both see the same requests in the same order, which gRPC guarantees, and
that any request can be restored. Leaves the rules that restored numbers must follow to the server's session.
"""

from __future__ import annotations

from tofc.v1 import tofc_pb2 as pb

UINT32_MAX = 2**32 - 1


class ImpliedNumbers:
    """What one side of one session has counted so far.

    >>> full = pb.SessionRequest(
    ...     pictures=[pb.Picture(ref=1)],
    ...     views=[pb.View(ref=1, index=0, packets=[b"a"]), pb.View(ref=1, index=1, packets=[b"b"])],
    ...     asks=[pb.Ask(request=1, refs=[1])],
    ... )
    >>> sent = pb.SessionRequest.FromString(full.SerializeToString())
    >>> ImpliedNumbers().shorten(sent)
    >>> full.ByteSize(), sent.ByteSize()
    (28, 12)
    >>> ImpliedNumbers().restore(sent)
    >>> [(view.ref, view.index, list(view.packets)) for view in sent.views], sent.asks == full.asks
    ([(1, 0, [b'a', b'b'])], True)
    """

    def __init__(self) -> None:
        self._highest_ref = 0
        self._announced = 0  # the ref of the last Picture; 0: there was none
        self._view_ref = 0  # of the last Picture or View
        self._next_index = 0  # after that View
        self._highest_request = 0

    def shorten(self, request: pb.SessionRequest) -> None:
        """Remove every number that `restore` finds again, and join packets that follow each other."""
        for picture in request.pictures:
            implied = self._next_ref()
            self._count_picture(picture.ref)
            if picture.ref == implied:
                picture.ClearField("ref")
        views, request_views = list(request.views), request.views
        del request_views[:]
        for view in views:
            follows = (view.ref, view.index) == (self._view_ref, self._next_index)
            if follows and request_views and not (view.views or request_views[-1].views):
                request_views[-1].packets.extend(view.packets)
            else:
                request_views.append(self._shortened(view, follows=follows))
            self._count_view(view)
        for ask in request.asks:
            implied = self._next_request()
            self._count_ask(ask.request)
            if ask.request == implied:
                ask.ClearField("request")
            if self._announced and not ask.refs:
                ask.without_pictures = True
            elif list(ask.refs) == [self._announced]:
                ask.ClearField("refs")

    def restore(self, request: pb.SessionRequest) -> None:
        """Fill in the numbers that are not stated."""
        for picture in request.pictures:
            picture.ref = picture.ref or self._next_ref()
            self._count_picture(picture.ref)
        for view in request.views:
            implied = 0 if view.ref else min(self._next_index, UINT32_MAX)
            view.ref = view.ref or self._view_ref
            view.index = view.index if view.HasField("index") else implied
            self._count_view(view)
        for ask in request.asks:
            ask.request = ask.request or self._next_request()
            self._count_ask(ask.request)
            if self._announced and not ask.refs and not ask.without_pictures:
                ask.refs.append(self._announced)

    def _shortened(self, view: pb.View, *, follows: bool) -> pb.View:
        if follows:
            return pb.View(packets=view.packets, views=view.views)
        ref = 0 if view.ref == self._view_ref else view.ref
        index = None if ref and not view.index else view.index
        return pb.View(ref=ref, index=index, packets=view.packets, views=view.views)

    def _next_ref(self) -> int:
        return min(self._highest_ref + 1, UINT32_MAX)

    def _next_request(self) -> int:
        return min(self._highest_request + 1, UINT32_MAX)

    def _count_picture(self, ref: int) -> None:
        self._highest_ref = max(self._highest_ref, ref)
        self._announced = self._view_ref = ref
        self._next_index = 0

    def _count_view(self, view: pb.View) -> None:
        self._view_ref = view.ref
        self._next_index = view.index + (view.views or len(view.packets))

    def _count_ask(self, request: int) -> None:
        self._highest_request = max(self._highest_request, request)
