"""The gRPC service: sessions, and information about the server and its load.

Promises that every call before `open` and after `close` is refused with an error that says why, and that the number of
open sessions is bounded. Leaves each session to `session`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from edge_server.admission import Admission
from edge_server.handshake import ServerIdentity
from edge_server.observer import SILENT, Observer
from edge_server.outbox import READ_TIMEOUT_S, Outbox
from edge_server.picture_cache import PictureCache
from edge_server.runtime import Runtime
from edge_server.session import ServerSession
from edge_server.session_slots import SessionSlots
from edge_server.settings import ServerSettings, SessionLimits
from tofc.errors import CallError, InternalError, LimitError, TokenError, UnavailableError
from tofc.rpc.errors import abort, to_message
from tofc.rpc.tokens import Token, find_token
from tofc.v1 import tofc_pb2 as pb
from tofc.v1 import tofc_pb2_grpc

log = logging.getLogger(__name__)


class TofcService(tofc_pb2_grpc.TofcServiceServicer):
    """Handles the calls of one server."""

    def __init__(
        self,
        settings: ServerSettings,
        tokens: Callable[[], Sequence[Token]] | None = None,
        observer: Observer = SILENT,
    ) -> None:
        """`tokens` returns those that are valid now; None: no token is needed."""
        self.settings = settings
        self.observer = observer
        self._tokens = tokens
        self._tokens_used: dict[ServerSession, Token] = {}
        self._numbers = itertools.count(1)
        self._slots: SessionSlots[ServerSession] = SessionSlots(settings.sessions)
        self._empty = asyncio.Event()  # set while no session is open
        self._empty.set()
        self._opened = time.monotonic()
        self._identity: ServerIdentity | None = None
        self._runtime: Runtime | None = None
        self._limits = settings.limits
        self._refusal: CallError = UnavailableError(
            "the server is still loading its model; try again in a moment", reason="LOADING"
        )
        self.engine_lost: UnavailableError | None = None  # why no session can be opened at the moment
        self.pictures = PictureCache(settings.cache_bytes)

    def open(self, identity: ServerIdentity, runtime: Runtime, limits: SessionLimits) -> None:
        """Serve sessions from now on."""
        self._opened = time.monotonic()
        self._identity = identity
        self._runtime = runtime
        self._limits = limits

    def end_revoked_sessions(self, valid: Sequence[Token]) -> None:
        """End the sessions whose token is not among the `valid` ones."""
        for session, token in self._tokens_used.items():
            if all(token.value != one.value for one in valid):
                session.end(_revoked())

    async def close(self, grace_s: float) -> None:
        """Refuse new sessions and questions; end each session when its questions are answered, or after `grace_s`."""
        self._identity = self._runtime = None
        self._refusal = UnavailableError("the server is stopping; try again later or elsewhere", reason="STOPPING")
        for session in self._slots:
            session.drain(self._refusal)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self.wait_until_empty()
        for session in self._slots:
            session.end(self._refusal)

    async def wait_until_empty(self) -> None:
        """Wait until no session is open."""
        await self._empty.wait()

    async def Session(
        self,
        request_iterator: AsyncIterable[pb.SessionRequest],
        context: grpc.aio.ServicerContext[pb.SessionRequest, pb.SessionResponse],
    ) -> None:
        """Serve one session."""
        refusal = self.refusal
        if refusal is not None:
            self.observer.error("session", refusal)
        error = refusal or await self._serve(request_iterator, context)
        if refusal is not None:
            with contextlib.suppress(TimeoutError):  # the status of the call carries the same error
                async with asyncio.timeout(READ_TIMEOUT_S):
                    await context.write(pb.SessionResponse(error=to_message(refusal)))
        if error is not None:
            await abort(context, error)  # gRPC keeps this frame for a while, so it must not refer to the session

    @property
    def not_ready(self) -> CallError | None:
        """Why no session can be opened, even if there is a place for one: loading, stopping, or no engine."""
        if self._identity is None or self._runtime is None:
            return self._refusal
        return self.engine_lost

    @property
    def refusal(self) -> CallError | None:
        """Why no session can be opened now; None if one can."""
        if (error := self.not_ready) is not None:
            return error
        try:
            self._slots.check()
        except LimitError as error:
            return error
        return None

    @property
    def sessions(self) -> int:
        """Sessions that are open."""
        return self._slots.sessions

    async def _serve(
        self,
        request_iterator: AsyncIterable[pb.SessionRequest],
        context: grpc.aio.ServicerContext[pb.SessionRequest, pb.SessionResponse],
    ) -> CallError | None:
        assert self._identity is not None and self._runtime is not None, "`refusal` was asked first"
        token = find_token(self._tokens(), context.invocation_metadata() or ()) if self._tokens else None
        if self._tokens and token is None:  # revoked after the call was accepted
            return _revoked()
        device = self._device(token, context)
        session = ServerSession(
            name=f"session {next(self._numbers)} ({', '.join(filter(None, (device, context.peer())))})",
            client=f"device {device}" if device else "",
            identity=self._identity,
            limits=self._limits,
            pictures=self.pictures,
            runtime=self._runtime,
            outbox=Outbox(self.observer.counting(context.write)),
            hello_timeout_s=self.settings.hello_timeout_s,
            on_hello=self._slots.enter,
        )
        self._slots.open(session, context.peer(), device)
        if token is not None:
            self._tokens_used[session] = token
        self._empty.clear()
        try:
            return await session.run(request_iterator)
        finally:
            self._slots.leave(session)
            self._tokens_used.pop(session, None)
            if not any(self._slots):
                self._empty.set()

    def _device(self, token: Token | None, context: grpc.aio.ServicerContext[Any, Any]) -> str:
        """Return the name of a client's device, from its token or else its certificate; empty if it has none."""
        names = [token.name] if token is not None else []
        if self.settings.tls_client_ca is not None:
            names += [name.decode(errors="replace") for name in context.auth_context().get("x509_common_name", ())]
        return next(filter(None, names), "")

    async def GetServerInfo(
        self,
        request: pb.GetServerInfoRequest,
        context: grpc.aio.ServicerContext[pb.GetServerInfoRequest, pb.GetServerInfoResponse],
    ) -> pb.GetServerInfoResponse:
        """Return what the server runs, what it allows and how busy it is."""
        identity, runtime = self._identity, self._runtime
        if identity is None or runtime is None:
            await abort(context, self._refusal)
            raise InternalError  # never reached: abort raises
        return pb.GetServerInfoResponse(
            server_version=identity.version,
            model_id=identity.model_id,
            codec_id=identity.codec_id,
            engine=runtime.backend.engine.name,
            limits=self._limits.message,
            load=self._load(runtime.admission),
            uptime_s=int(time.monotonic() - self._opened),
            codecs=[
                pb.Codec(name=codec.name, codec_id=codec.codec_id, entropy_model=codec.entropy_model)
                for codec in identity.codecs
                if codec.served
            ],
        )

    def _load(self, admission: Admission) -> pb.Load:
        """Return how busy the server is."""
        return pb.Load(
            sessions_open=self._slots.sessions,
            sessions_allowed=self.settings.sessions,
            questions_running=admission.running,
            questions_running_allowed=admission.places,
            questions_waiting=admission.waiting,
            questions_waiting_allowed=self.settings.engine_queue,
        )


def _revoked() -> TokenError:
    return TokenError(
        "this device's token was revoked; ask whoever runs the server for another one", reason="TOKEN_REVOKED"
    )
