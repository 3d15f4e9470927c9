"""Numbers that are not sent: restoring them reverses shortening, whatever a session does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tofc.rpc.implied import UINT32_MAX, ImpliedNumbers
from tofc.v1 import tofc_pb2 as pb

number = st.integers(1, 4) | st.sampled_from([UINT32_MAX - 1, UINT32_MAX])
views = st.builds(
    lambda ref, index, packet: pb.View(ref=ref, index=index, packets=[packet]),
    number,
    st.integers(0, 4) | st.just(UINT32_MAX),
    st.binary(max_size=3),
)
requests = st.builds(
    pb.SessionRequest,
    pictures=st.lists(st.builds(pb.Picture, ref=number, rows=number), max_size=2),
    views=st.lists(views, max_size=4),
    asks=st.lists(st.builds(pb.Ask, request=number, refs=st.lists(number, max_size=2)), max_size=2),
    cancels=st.lists(st.builds(pb.Cancel, request=number), max_size=1),
)


def plain(request: pb.SessionRequest) -> tuple[object, ...]:
    """Return what a request says, with one packet in each view."""
    views = [(one.ref, one.index + at, packet) for one in request.views for at, packet in enumerate(one.packets)]
    asks = [(ask.request, list(ask.refs)) for ask in request.asks]
    return list(request.pictures), views, asks, list(request.cancels)


@given(st.lists(requests, max_size=6))
def test_restoring_reverses_shortening(sent: list[pb.SessionRequest]) -> None:
    device, server = ImpliedNumbers(), ImpliedNumbers()
    for request in sent:
        wire = pb.SessionRequest.FromString(request.SerializeToString())
        device.shorten(wire)
        assert wire.ByteSize() <= request.ByteSize() + 2 * len(request.asks), "`without_pictures` takes two bytes"
        received = pb.SessionRequest.FromString(wire.SerializeToString())
        server.restore(received)
        assert plain(received) == plain(request)


def test_stated_numbers_stay() -> None:
    request = pb.SessionRequest(
        pictures=[pb.Picture(ref=7)],
        views=[pb.View(ref=3, index=2, packets=[b"a"])],
        asks=[pb.Ask(request=9, refs=[3]), pb.Ask(request=1, without_pictures=True)],
    )
    restored = pb.SessionRequest.FromString(request.SerializeToString())
    ImpliedNumbers().restore(restored)
    assert restored == request


def test_a_session_about_one_picture_at_a_time_sends_no_numbers() -> None:
    numbers = ImpliedNumbers()
    for ref in (1, 2):
        first = pb.SessionRequest(
            pictures=[pb.Picture(ref=ref)],
            views=[pb.View(ref=ref, index=0, packets=[b"a"])],
            asks=[pb.Ask(request=ref, refs=[ref])],
        )
        numbers.shorten(first)
        assert first == pb.SessionRequest(pictures=[pb.Picture()], views=[pb.View(packets=[b"a"])], asks=[pb.Ask()])
        later = pb.SessionRequest(views=[pb.View(ref=ref, index=at, packets=[b"b"]) for at in (1, 2)])
        numbers.shorten(later)
        assert later == pb.SessionRequest(views=[pb.View(packets=[b"b", b"b"])])
