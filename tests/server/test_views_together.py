"""Several views in one packet, as the server takes them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_server.fake import FakeAssembler, fake_backend
from edge_server.settings import SessionLimits
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import ANSWERED
from tofc.v1 import tofc_pb2 as pb


async def test_a_packet_brings_several_views_and_each_is_acknowledged(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    assert (await client.hello()).limits.views_per_packet == 64
    assert not await client.picture(1, "p", rows=2, columns=2)
    await client.send(views=[pb.View(ref=1, packets=[b"aabbcc"], views=3), pb.View(packets=[b"dd", b"ee"])])
    await client.ask(1, "?", refs=(1,))
    assert (await client.answer(1))[0] == "aabbccddee?"
    assert sorted(client.acknowledged) == [(1, index) for index in range(5)]
    assert await client.picture(2, "p", rows=2, columns=2)


async def test_views_that_are_there_already_are_dropped(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    await client.hello()
    await client.picture(1, "p", rows=1, columns=2)
    await client.view(1, 1, b"yy")
    await client.send(views=[pb.View(ref=1, index=0, packets=[b"aabbcc"], views=3)])
    await client.ask(1, "?", refs=(1,))
    text, _ = await client.answer(1)
    assert text in ("aayycc?", "aabbcc?")  # whichever of the two was decoded first


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (pb.View(ref=1, packets=[b"ab", b"cd"], views=2), "VIEW_COUNT_INVALID"),
        (pb.View(ref=1, views=2), "VIEW_COUNT_INVALID"),
        (pb.View(ref=1, packets=[b"abcd"], views=4), "VIEW_COUNT_INVALID"),  # more than the limit
        (pb.View(ref=1, index=3, packets=[b"abc"], views=3), "VIEW_INDEX_INVALID"),
        (pb.View(ref=1, index=2**32 - 1, packets=[b"abc"], views=2**32 - 1), "VIEW_INDEX_INVALID"),
    ],
)
async def test_invalid_numbers_of_views_are_refused(view: pb.View, reason: str, serve: Serve, connect: Connect) -> None:
    client = connect(await serve(limits=SessionLimits(views_per_packet=3)))
    await client.hello()
    await client.picture(1, "p", rows=2, columns=2)
    await client.send(views=[view])
    await client.failed(grpc.StatusCode.INVALID_ARGUMENT, reason)


async def test_a_packet_takes_as_many_places_as_it_has_views(serve: Serve, connect: Connect) -> None:
    """A session decodes no more views at once for sending them together, and packets larger than that pass too."""
    decoding: list[int] = []
    most = 0
    gate = threading.Event()

    class Waiting(FakeAssembler):
        def views(self, packet: bytes, *, codec_id: str, count: int, last: bool) -> Sequence[NDArray[np.float32]]:
            nonlocal most
            decoding.append(count)
            most = max(most, sum(decoding))
            gate.wait(ANSWERED)
            decoding.remove(count)
            return super().views(packet, codec_id=codec_id, count=count, last=last)

    server = await serve(
        replace(fake_backend(), assembler=Waiting()), limits=SessionLimits(views_in_flight=4), threads=8
    )
    client = connect(server)
    await client.hello()
    await client.picture(1, "p", rows=1, columns=10)
    for first, count in ((0, 3), (3, 1), (4, 6), (10, 1)):
        await client.send(views=[pb.View(ref=1, index=first, packets=[b"x" * count], views=count * (count > 1))])
    await client.ask(1, "?", refs=(1,))
    gate.set()
    assert (await client.answer(1))[0] == "x" * 11 + "?"
    assert 1 <= most <= 6  # the packet of six takes all places
