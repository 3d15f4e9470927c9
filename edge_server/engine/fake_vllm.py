"""A server that speaks vLLM's completions API over HTTP, answers with another engine, and fails on demand.

    POST /v1/completions ─ torch.load ─→ engine.submit_samples ─→ data: {"choices": [{"token_ids": [7]}]} …
                             a Fault of the test's script changes what is sent ─┘

Promises what `vllm_remote` relies on: sample i gets the seed + i, the seed -1 is none, greedy requests have one sample,
the stop token is part of an answer, a closed connection cancels its answers. Leaves HTTP to h11. For tests only.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import h11
import numpy as np
from numpy.typing import NDArray

from edge_server.engine.base import Engine, Finish, Generation, Prompt
from edge_server.engine.samples import GREEDY
from edge_server.engine.sampling import SamplingParams
from tofc.errors import CallError

Likeliest = Callable[[NDArray[np.float32]], dict[int, float]]  # rows [T, H] → token id → log probability


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to one streamed answer."""

    after: int = 0  # tokens that are still sent
    status: int = 200  # else the answer is refused with it
    event: str = ""  # sent then, instead of a token
    then: Literal["abort", "end", "hang"] = "abort"  # end: without [DONE]


class FakeVllm:
    """Serves `engine` on a free port of the loopback address. `faults` are used up by streamed answers, in order."""

    def __init__(
        self,
        engine: Engine,
        likeliest: Likeliest,
        *,
        stop_token: int,
        key: str = "",
        max_positions: int = 8192,
        port: int = 0,
    ) -> None:
        self.faults: deque[Fault] = deque()
        self.requests: list[dict[str, Any]] = []  # bodies of streamed answers, without rows
        self.headers: list[dict[str, str]] = []
        self.healthy = True
        self.health_text: str | None = None
        self.next_healths: deque[int] = deque()  # statuses of the next looks at /health; 0: no answer
        self.probing = asyncio.Event()  # cleared: the probe is not answered
        self.probing.set()
        self.probes_to_fail = 0  # as behind a router that still asks an engine which has ended
        self.generations: list[Generation] = []
        self._engine = engine
        self.likeliest = likeliest
        self._stop_token = stop_token
        self._key = key
        self._max_positions = max_positions
        self.port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Its address, as `--engine-url` takes it."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen, after a `kill` at the same port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """End as a killed process does: no connection is closed properly."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await _Connection(self, reader, writer).run()
        except (ConnectionError, h11.RemoteProtocolError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def answer(self, request: h11.Request, body: bytes, send: _Send) -> None:
        """Answer one request."""
        path = request.target.decode()
        given = {name.decode(): value.decode() for name, value in request.headers}
        if path == "/health":
            status = self.next_healths.popleft() if self.next_healths else 200 if self.healthy else 503
            if not status:
                await asyncio.Event().wait()
            await send.json(status, self.health_text)
        elif self._key and given.get("authorization") != f"Bearer {self._key}":
            await send.json(401, {"error": "Unauthorized"})
        elif path == "/v1/models":
            await send.json(200, {"data": [{"id": "fake", "max_model_len": self._max_positions}]})
        elif path != "/v1/completions":
            await send.json(404, {"detail": "Not Found"})
        else:
            asked = json.loads(body)
            rows = _rows(asked.pop("prompt_embeds"))
            if asked["stream"]:
                self.requests.append(asked)
                self.headers.append(given)
                await self._stream(asked, rows, send)
            elif self.probes_to_fail:
                self.probes_to_fail -= 1
                await send.json(500, {"error": {"message": "as scripted", "code": 500}})
            else:
                await self.probing.wait()
                top = {f"token_id:{token}": value for token, value in self.likeliest(rows).items()}
                await send.json(200, {"choices": [{"logprobs": {"top_logprobs": [top]}}]})

    async def _stream(self, asked: dict[str, Any], rows: NDArray[np.float32], send: _Send) -> None:
        fault = self.faults.popleft() if self.faults else None
        if fault is not None and fault.status != 200:
            await send.json(fault.status, {"error": {"message": "as scripted", "code": fault.status}})
            return
        if asked["temperature"] < GREEDY and asked["n"] > 1:
            await send.json(400, {"error": {"message": "n must be 1 when using greedy sampling", "code": 400}})
            return
        sampling = SamplingParams(
            max_tokens=asked["max_tokens"],
            temperature=asked["temperature"],
            top_p=asked["top_p"],
            top_k=asked["top_k"],
            seed=secrets.randbits(64) if asked["seed"] == -1 else asked["seed"] % 2**64,
        )
        try:
            generations = self._engine.submit_samples(Prompt(embeds=rows), sampling, asked["n"])
        except CallError as error:
            await send.json(503, {"error": {"message": error.message, "code": 503}})
            return
        self.generations += generations
        await send.head(200, "text/event-stream; charset=utf-8")
        sent = 0

        async def tell(choice: dict[str, Any]) -> None:
            nonlocal sent
            if fault is not None and sent >= fault.after:
                await send.fail(fault)
            sent += 1
            await send.event(json.dumps({"choices": [{"text": "", **choice}]}))

        try:
            await asyncio.gather(*(self._sample(index, one, tell) for index, one in enumerate(generations)))
            await send.event("[DONE]")
            await send.end()
        finally:
            for one in generations:
                await one.aclose()

    async def _sample(
        self, index: int, generation: Generation, tell: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        async for token in generation:
            await tell({"index": index, "token_ids": [token], "finish_reason": None, "stop_reason": None})
        if generation.finish is Finish.STOP:
            stop = self._stop_token
            await tell({"index": index, "token_ids": [stop], "finish_reason": "stop", "stop_reason": stop})
        elif generation.finish is Finish.LENGTH:
            await tell({"index": index, "token_ids": [], "finish_reason": "length", "stop_reason": None})


class _Send:
    """The answering side of a connection."""

    def __init__(self, http: h11.Connection, writer: asyncio.StreamWriter) -> None:
        self._http = http
        self._writer = writer

    async def head(self, status: int, kind: str, *more: tuple[str, str]) -> None:
        await self._put(h11.Response(status_code=status, headers=[("content-type", kind), *more]))

    async def event(self, data: str) -> None:
        await self._put(h11.Data(data=f"data: {data}\n\n".encode()))

    async def end(self) -> None:
        await self._put(h11.EndOfMessage())

    async def json(self, status: int, content: Any) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        await self.head(status, "application/json", ("content-length", str(len(body))))
        await self._put(h11.Data(data=body))
        await self.end()

    async def fail(self, fault: Fault) -> None:
        """Fail as scripted. Raises ConnectionError."""
        if fault.event:
            await self.event(fault.event)
        if fault.then == "hang":
            await asyncio.Event().wait()
        if fault.then == "end":
            await self.end()
        else:
            self._writer.transport.abort()
        raise ConnectionError("as scripted")

    async def _put(self, event: Any) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)
            await self._writer.drain()


class _Connection:
    """One connection: requests one after the other; when it closes, the answer under way is cancelled."""

    def __init__(self, server: FakeVllm, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self._http = h11.Connection(h11.SERVER)
        self._send = _Send(self._http, writer)

    async def run(self) -> None:
        while (request := await self._next()) is not None:
            body = b""
            while isinstance(part := await self._next(), h11.Data):
                body += bytes(part.data)
            answering = asyncio.create_task(self._server.answer(request, body, self._send))
            closed = asyncio.create_task(self._reader.read(65_536))
            try:
                await asyncio.wait([answering, closed], return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():  # this client sends nothing before it has its answer: it is gone
                    return
                await answering
                self._http.start_next_cycle()
                data = await closed  # the next request
                self._http.receive_data(data)
            finally:
                for task in (answering, closed):
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                        await task

    async def _next(self) -> Any:
        """Return h11's next event; None when the client has closed the connection."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(65_536))
        return None if isinstance(event, h11.ConnectionClosed) else event


def _rows(encoded: str) -> NDArray[np.float32]:
    import torch

    tensor = torch.load(io.BytesIO(base64.b64decode(encoded)), weights_only=True)
    found: NDArray[np.float32] = tensor.float().numpy()
    return found
