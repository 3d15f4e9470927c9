"""A server that sends anything: each session plays a script of messages, or of bytes that are not messages."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, MutableSequence
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio

from tofc.rpc.implied import ImpliedNumbers
from tofc.v1 import tofc_pb2 as pb

Reply = pb.SessionResponse | bytes


class Gone(Exception):
    """The device has ended the session."""


class Stage:
    """What a script receives from its device."""

    def __init__(self, requests: Any, context: Any) -> None:
        self.requests, self.context = requests, context
        self.deaf = False  # the server reads nothing after Hello
        self.received: list[tuple[str, Any]] = []
        self._changed = asyncio.Condition()
        self._over = False

    async def listen(self) -> None:
        implied = ImpliedNumbers()
        async for request in self.requests:
            implied.restore(request)
            async with self._changed:
                for field, parts in request.ListFields():
                    many = isinstance(parts, MutableSequence)  # FieldDescriptor.is_repeated is not in every protobuf
                    self.received += [(field.name, part) for part in (parts if many else [parts])]
                self._changed.notify_all()
            if self.deaf:
                await asyncio.Event().wait()
        async with self._changed:
            self._over = True
            self._changed.notify_all()

    async def until(self, kind: str, count: int = 1) -> Any:
        """Wait for message number `count` of this kind. Raises Gone if the device ends before."""

        def there() -> bool:
            return self._over or len(self.of(kind)) >= count

        async with self._changed:
            await self._changed.wait_for(there)
        if len(self.of(kind)) < count:
            raise Gone
        return self.of(kind)[count - 1]

    def of(self, kind: str) -> list[Any]:
        return [message for one, message in self.received if one == kind]

    async def welcome(self, **more: Any) -> pb.SessionResponse:
        """Return the Welcome that fits the device's Hello."""
        hello = await self.until("hello")
        limits = pb.Limits(packet_bytes=1000, new_tokens=50, image_bytes=10**6, image_pixels=10**6)
        ids = {"model_id": hello.model_id, "codec_id": hello.codec_id, "picture_key": bytes(16), "limits": limits}
        return pb.SessionResponse(welcome=pb.Welcome(**{**ids, **more}))


Script = Callable[[Stage], AsyncIterator[Reply]]


class Hostile:
    """`sent` counts messages, of all sessions."""

    def __init__(self) -> None:
        self.script: Script | None = None
        self.info: bytes | None = None  # the answer to GetServerInfo; None: it never answers
        self.sent = 0
        self.sessions = 0
        self.port = 0

    async def session(self, requests: Any, context: Any) -> None:
        self.sessions += 1
        assert self.script is not None
        stage = Stage(requests, context)
        listening = asyncio.create_task(stage.listen())
        try:
            with contextlib.suppress(Gone):
                async for reply in self.script(stage):
                    await context.write(reply if isinstance(reply, bytes) else reply.SerializeToString())
                    self.sent += 1
            await listening
        finally:
            listening.cancel()

    async def server_info(self, request: bytes, context: Any) -> bytes:
        if self.info is None:
            await asyncio.Event().wait()
        return self.info or b""


@contextmanager
def hostile_server() -> Iterator[Hostile]:
    """Run the server in its own thread: the commands run an event loop themselves."""
    ready, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    made = Hostile()

    async def serve() -> None:
        server = grpc.aio.server(
            options=[("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        )
        handlers = {
            "Session": grpc.stream_stream_rpc_method_handler(made.session, pb.SessionRequest.FromString),
            "GetServerInfo": grpc.unary_unary_rpc_method_handler(made.server_info),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tofc.v1.TofcService", handlers),))
        made.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ready.set()
        await stop.wait()
        await server.stop(0)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(20)
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
