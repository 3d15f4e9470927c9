"""A server with several codecs: each session uses the one that its device names in Hello."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_server.fake import FakeAssembler, fake_backend
from edge_server.handshake import KnownCodec, ServerIdentity, check_hello
from tests.server.conftest import Connect, Serve
from tofc.errors import MismatchError
from tofc.v1 import tofc_pb2 as pb

PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
OTHERS = (
    KnownCodec(name="default", codec_id="fake-codec", entropy_model="fake"),
    KnownCodec(name="fast", codec_id="fast-codec", entropy_model="quick"),
    KnownCodec(name="old", codec_id="old-codec"),
)


@pytest.mark.parametrize(
    ("codec_id", "served"),
    [("fake-codec", True), ("fast-codec", True), ("old-codec", False), ("other", False)],
)
async def test_a_session_uses_the_codec_that_its_device_names(
    codec_id: str, served: bool, serve: Serve, connect: Connect
) -> None:
    asked: list[str] = []

    class Assembler(FakeAssembler):
        def views(self, packet: bytes, *, codec_id: str, count: int, last: bool) -> Sequence[NDArray[np.float32]]:
            asked.append(codec_id)
            return super().views(packet, codec_id=codec_id, count=count, last=last)

    client = connect(await serve(replace(fake_backend(codecs=OTHERS), assembler=Assembler())))
    if served:
        assert (await client.hello(codec_id=codec_id)).codec_id == codec_id
        await client.picture(1, "p")
        await client.view(1, 0, b"abc")
        await client.ask(1, "?", refs=(1,))
        await client.answer(1)
        assert asked == [codec_id]
        return
    await client.send(hello=pb.Hello(model_id="fake-model", codec_id=codec_id))
    message = await client.failed(PRECONDITION, "CODEC_MISMATCH")
    assert "default (fake, fake-codec), fast (quick, fast-codec)" in message
    if codec_id == "old-codec":
        assert "the device uses the codec old (old-codec) of this model" in message
        assert "Give the device --feature-codec default; or start the server with --feature-codec old" in message
    else:
        assert "Update the device" in message


def test_a_message_names_a_few_codecs_only() -> None:
    many = tuple(KnownCodec(name=f"c{n}", codec_id=f"{n:016x}", entropy_model="fake") for n in range(1000))
    identity = ServerIdentity(version="1", model_id="m", codecs=many)
    with pytest.raises(MismatchError, match=r"c7 \(fake, 0000000000000007\), …\. ") as refused:
        check_hello(pb.Hello(model_id="m", codec_id="x" * 10_000), identity)
    assert len(str(refused.value)) < 1000
