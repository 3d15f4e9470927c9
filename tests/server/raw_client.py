"""A client that sends and receives single messages of the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from tofc.rpc.channel import CHUNK_BYTES
from tofc.rpc.errors import REASON_METADATA
from tofc.rpc.picture_id import ID_BYTES
from tofc.v1 import tofc_pb2 as pb
from tofc.v1 import tofc_pb2_grpc

ANSWERED = 20.0  # seconds after which a test fails instead of hanging


class RawClient:
    """One session, message by message."""

    def __init__(self, channel: grpc.aio.Channel, **call: Any) -> None:
        self.channel = channel
        self.stub: Any = tofc_pb2_grpc.TofcServiceStub(channel)
        self.acknowledged: list[tuple[int, int]] = []  # views, by ref and index
        self.call = self.stub.Session(**call)

    async def send(self, **request: Any) -> None:
        await self.call.write(pb.SessionRequest(**request))

    async def receive(self) -> pb.SessionResponse:
        """Return the next response; acknowledgements of views, which may come at any time, are noted and skipped."""
        async with asyncio.timeout(ANSWERED):
            while self._noted(response := await self.call.read()):
                pass
            return response

    def _noted(self, response: pb.SessionResponse) -> bool:
        if response is grpc.aio.EOF or not response.HasField("view_ack"):
            return False
        self.acknowledged += [(response.view_ack.ref, index) for index in response.view_ack.indexes]
        return True

    async def expect(self, kind: str) -> Any:
        """Return the next response, which must be of this kind."""
        response = await self.receive()
        assert response is not grpc.aio.EOF, f"the stream ended instead of {kind}"
        assert response.WhichOneof("response") == kind, response
        return getattr(response, kind)

    async def hello(self, model_id: str = "fake-model", codec_id: str = "fake-codec") -> pb.Welcome:
        await self.send(hello=pb.Hello(client_version="1.0", model_id=model_id, codec_id=codec_id))
        return await self.expect("welcome")

    async def picture(self, ref: int, name: str, rows: int = 0, columns: int = 0) -> bool:
        """Announce a picture; return whether the server has it already."""
        announced = pb.Picture(ref=ref, picture_id=picture_id(name), rows=rows, columns=columns, want_state=True)
        await self.send(pictures=[announced])
        state = await self.expect("picture_state")
        assert state.ref == ref
        return state.complete

    async def view(self, ref: int, index: int, packet: bytes) -> None:
        await self.send(views=[pb.View(ref=ref, index=index, packets=[packet])])

    async def taken(self, ref: int, index: int) -> None:
        """Read until this view is acknowledged; only acknowledgements may arrive before."""
        async with asyncio.timeout(ANSWERED):
            while (ref, index) not in self.acknowledged:
                response = await self.call.read()
                assert self._noted(response), response

    async def image(self, ref: int, name: str, data: bytes, *, size: tuple[int, int], **picture: Any) -> None:
        """Announce and send an image file, which the server must not have yet."""
        await self.send(pictures=[image_picture(ref, name, size, **picture, want_state=False)])
        await self.chunks(ref, data)

    async def chunks(self, ref: int, data: bytes, length: int = CHUNK_BYTES) -> None:
        for offset in range(0, len(data), length):
            chunk = data[offset : offset + length]
            total = 0 if offset else len(data)
            await self.send(image_chunks=[pb.ImageChunk(ref=ref, offset=offset, total=total, data=chunk)])
            ack = await self.expect("image_ack")
            assert (ack.ref, ack.offset) == (ref, offset)

    async def ask(self, request: int, text: str, refs: tuple[int, ...] = (), **more: Any) -> None:
        await self.send(asks=[pb.Ask(request=request, refs=refs, question=text, without_pictures=not refs, **more)])

    async def answer(self, request: int) -> tuple[str, pb.Done]:
        """Return the text and the Done of the only question in flight."""
        text = ""
        while (response := await self.receive()).WhichOneof("response") == "token":
            assert response.token.request == request
            text += response.token.text
        assert response.WhichOneof("response") == "done", response
        assert response.done.request == request
        return text, response.done

    async def end(self) -> None:
        """Close the stream, and check that the server ends it without an error."""
        await self.call.done_writing()
        assert await self.receive() is grpc.aio.EOF
        assert await self.call.code() == grpc.StatusCode.OK

    async def failed(self, status: grpc.StatusCode, reason: str) -> str:
        """Check that stream and call ended with this error; return its message."""
        error = await self.expect("error")
        assert (error.request, error.status, error.reason) == (0, status.value[0], reason), error
        assert await self.receive_status() == status
        assert await self.call.details() == error.message
        return error.message

    async def not_heard(self, status: grpc.StatusCode, reason: str) -> None:
        """Check that the call, on which nothing was sent, ended with this error as its status only."""
        assert await self.receive_status() == status
        assert dict(await self.call.trailing_metadata())[REASON_METADATA] == reason

    async def receive_status(self) -> grpc.StatusCode:
        async with asyncio.timeout(ANSWERED):
            return await self.call.code()


async def within(awaitable: Any) -> Any:
    """Return the result of an awaitable, which must come in time."""
    async with asyncio.timeout(ANSWERED):
        return await awaitable


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds that the server brings about."""
    async with asyncio.timeout(ANSWERED):
        while not condition():
            await asyncio.sleep(0)


def picture_id(name: str) -> bytes:
    return name.encode().ljust(ID_BYTES, b"\0")


def image_picture(
    ref: int, name: str, size: tuple[int, int], *, kind: int = pb.IMAGE_FORMAT_JPEG, **picture: Any
) -> pb.Picture:
    image = pb.Image(format=kind, width=size[0], height=size[1])  # type: ignore[arg-type]
    return pb.Picture(**{"ref": ref, "picture_id": picture_id(name), "image": image, "want_state": True, **picture})
