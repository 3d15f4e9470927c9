"""The routes of the endpoint, and one request's way through them.

    POST /v1/chat/completions ─ place ─ body ─ request ─ turn ─ link ─ pictures ─ run ─┬─ completion
                                                                                       └─ events
    GET  /v1/models  /props  /health  /metrics

Promises an error in OpenAI's form for everything that is refused, also for paths that do not exist; and that a client
which leaves, at any time, ends its questions on the edge server. Leaves opening the session and the port to `serve`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from device_client.endpoint.access import OWNER
from device_client.endpoint.body import BodyReader
from device_client.endpoint.completion import Completion, usage_of
from device_client.endpoint.described import Described
from device_client.endpoint.errors import ApiError, as_api_error, invalid
from device_client.endpoint.events import stream
from device_client.endpoint.metrics import Metrics, Outcome
from device_client.endpoint.pictures import KeptPictures
from device_client.endpoint.request import ChatRequest, read_request
from device_client.endpoint.run import ChatRun, Defaults, Event
from device_client.endpoint.slots import RUNNING, Slots
from device_client.picture import Picture
from device_client.session import Session
from tofc.errors import Error
from tofc.v1 import tofc_pb2 as pb

T = TypeVar("T")
CONNECT_S = 10.0  # for a link that was lost to come back, before a request is refused
GLANCE_S = 2.0  # for a server to tell what it is, where that is not needed
GONE = 499  # nginx's status for a client that left; nobody reads it
CHAT = "/v1/chat/completions"


class ClientGone(Exception):
    """The client has closed the connection."""


@dataclass(frozen=True)
class _Opened:
    """The pictures of a request, and how many of them were known before it."""

    pictures: list[Picture]
    known: int


class Endpoint:
    """Answers requests with one session."""

    def __init__(
        self,
        session: Session,
        described: Described,
        *,
        pictures: KeptPictures,
        bodies: BodyReader,
        slots: Slots,
        defaults: Defaults,
        order: str,
    ) -> None:
        """`order`: see `messages`."""
        self._session = session
        self._described = described
        self._pictures = pictures
        self._bodies = bodies
        self._slots = slots
        self._defaults = defaults
        self._order = order
        self._welcome: pb.Welcome | None = None
        self._metrics = Metrics(lambda: len(pictures), session.traffic)

    def app(self) -> Starlette:
        """Return the ASGI application, without access control."""
        routes = [
            *(Route(path, self._chat, methods=["POST"]) for path in (CHAT, "/chat/completions")),
            *(Route(path, self._models) for path in ("/v1/models", "/models")),
            Route("/v1/models/{name:path}", self._model),
            *(Route(path, self._props) for path in ("/props", "/v1/props")),
            *(Route(path, self._health) for path in ("/health", "/v1/health")),
            Route("/metrics", self._metrics_text),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _refused})

    async def connect(self, timeout_s: float | None = CONNECT_S) -> pb.Welcome:
        """Return what the edge server told at the beginning of the session. Raises as `Session.connect`."""
        self._welcome = await self._session.connect(timeout_s)
        return self._welcome

    async def _glance(self) -> pb.Welcome | None:
        """Return what is known of the edge server; ask it now if that is nothing."""
        if self._welcome is None:
            with suppress(Error, TimeoutError):
                async with asyncio.timeout(GLANCE_S):
                    await self.connect(GLANCE_S)
        return self._welcome

    async def _models(self, _: Request) -> Response:
        return JSONResponse(self._described.models(await self._glance()))

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._described.name:
            message = f"the model {name[:80]!r} is not served here; the one that is: {self._described.name}"
            return _error(ApiError(404, "model_not_found", message, param="model"))
        return JSONResponse(self._described.model(await self._glance()))

    async def _props(self, _: Request) -> Response:
        return JSONResponse(self._described.props(await self._glance(), RUNNING))

    async def _health(self, _: Request) -> Response:
        encoder = self._session.encoder
        if encoder.broken is not None:
            message = "the model could not be loaded; what /v1/chat/completions answers says why"
            return _error(ApiError(500, "encoder_failed", message, kind="server_error"))  # whoever asks: no more
        loading = not encoder.encoder.ready
        return JSONResponse({"status": "loading model" if loading else "ok"}, 503 if loading else 200)

    async def _metrics_text(self, _: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _chat(self, request: Request) -> Response:
        arrived_s = time.perf_counter()
        async with AsyncExitStack() as stack:
            outcome = stack.enter_context(self._metrics.counted())
            try:
                stack.enter_context(self._slots.place())
                body = stack.enter_context(self._bodies.body())
                asked = read_request(await body.read_json(request), order=self._order)
                self._pictures.check(asked.media)
                await _unless_gone(request, stack.enter_async_context(self._slots.running()))
                stack.callback(self._pictures.trim)
                welcome = await _unless_gone(request, self.connect())
                _check_number(asked, welcome.limits)  # before any is opened
                opened = await _unless_gone(request, self._opened(asked, request.scope.get(OWNER, "")))
                asked = replace(asked, media=())  # their text is large, and an answer may take minutes
                body.release()
                run = ChatRun(self._session, asked, opened.pictures, welcome, self._defaults, arrived_s=arrived_s)
                return await self._answered(request, asked, opened, run, stack, outcome)
            except (ClientGone, ClientDisconnect):
                outcome.code = "gone"
                return Response(status_code=GONE)
            except Exception as error:
                found = as_api_error(error)
                outcome.code = found.code
                return _error(found)

    async def _answered(
        self,
        request: Request,
        asked: ChatRequest,
        opened: _Opened,
        run: ChatRun,
        stack: AsyncExitStack,
        outcome: Outcome,
    ) -> Response:
        completion = Completion(model=self._described.name)
        await stack.enter_async_context(run)

        def ended() -> dict[str, Any]:
            usage = usage_of(run, asked, opened.pictures, opened.known)
            self._metrics.answered(usage)
            return usage

        def last() -> dict[str, Any] | None:
            usage = ended()
            return usage if asked.include_usage else None

        def failed(error: ApiError) -> None:
            outcome.code = error.code

        events = run.events()
        first = await _unless_gone(request, anext(events))
        if asked.stream:
            lines = stream(_chained(first, events), completion, ended=last, failed=failed)
            return _Events(lines, stack.pop_all(), outcome)
        await _unless_gone(request, _exhausted(events))
        reports = [run.reports[number] for number in range(asked.choices)]
        return JSONResponse(completion.whole(reports, ended()))

    async def _opened(self, asked: ChatRequest, owner: str) -> _Opened:
        found: list[tuple[Picture, bool]] = [await self._pictures.get(one, owner) for one in asked.media]
        return _Opened([picture for picture, _ in found], sum(known for _, known in found))


class _Events(StreamingResponse):
    """A stream of events; `stack` is closed when it has ended, or its client has left."""

    media_type = "text/event-stream"

    def __init__(self, lines: AsyncGenerator[str], stack: AsyncExitStack, outcome: Outcome) -> None:
        super().__init__(lines, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._lines = lines
        self._stack = stack
        self._outcome = outcome
        self._ended = False

    async def stream_response(self, send: Send) -> None:
        await super().stream_response(send)
        self._ended = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if not self._ended:
                self._outcome.code = "gone"
            await self._lines.aclose()
            await self._stack.aclose()


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Return the result of `work`; if the client leaves before, cancel it and raise ClientGone."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait({working, leaving})


async def _left(request: Request) -> None:
    """Return when the client has closed the connection; the body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _chained(first: Event, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
    yield first
    async for one in events:
        yield one


async def _exhausted(events: AsyncIterator[Event]) -> None:
    async for _ in events:
        pass


def _check_number(asked: ChatRequest, limits: pb.Limits) -> None:
    """Raise ApiError for more pictures than the edge server takes with one question."""
    found, most = len(asked.media), limits.pictures_per_question
    if most and found > most:
        message = f"the messages must show at most {most} pictures, got {found}; ask about fewer"
        raise invalid("messages", message, code="too_many_images")


def _error(error: ApiError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


async def _refused(request: Request, error: Exception) -> Response:
    """Answer what has no route."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    paths: Sequence[str] = (CHAT, "/v1/models", "/props", "/health", "/metrics")
    hint = f"POST {CHAT}" if request.method == "POST" else ", ".join(paths)
    what = "is not served here" if error.status_code == 404 else f"takes no {request.method}"
    return _error(ApiError(error.status_code, "not_found", f"{path[:80]} {what}; use {hint}"))
