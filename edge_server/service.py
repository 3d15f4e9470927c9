"""The service of the contract: sessions and what a server says about itself.

Promises that before `open` and after `close` every call is refused with a sentence, and that at most
so many sessions run. Leaves a session's life to `session`.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from edge_server.answer import Workshop
from edge_server.handshake import Identity
from edge_server.outbox import PATIENCE, Outbox
from edge_server.pictures import PictureCache
from edge_server.places import Places
from edge_server.session import Session
from edge_server.settings import ServerSettings, SessionLimits
from shared.rpc.errors import InternalError, LimitError, TofcError, TokenError, UnavailableError, abort, to_message
from shared.rpc.tofc.v1 import tofc_pb2, tofc_pb2_grpc
from shared.rpc.tokens import Token, shown

log = logging.getLogger(__name__)


class TofcService(tofc_pb2_grpc.TofcServiceServicer):
    """One server's calls."""

    def __init__(self, settings: ServerSettings, tokens: Callable[[], Sequence[Token]] | None = None) -> None:
        """`tokens` are those that hold now."""
        self.settings = settings
        self._tokens = tokens
        self._shown: dict[Session, Token] = {}
        self._numbers = itertools.count(1)
        self._places: Places[Session] = Places(settings.sessions)
        self._left = asyncio.Event()  # set while no session is open
        self._left.set()
        self._identity: Identity | None = None
        self._shop: Workshop | None = None
        self._limits = settings.limits
        self._refusal: TofcError = UnavailableError(
            "the server is still loading its model; try again in a moment", reason="LOADING"
        )
        self.pictures = PictureCache(settings.cache_bytes)

    def open(self, identity: Identity, shop: Workshop, limits: SessionLimits) -> None:
        """From now on sessions are served."""
        self._identity = identity
        self._shop = shop
        self._limits = limits

    def keep(self, tokens: Sequence[Token]) -> None:
        """Ends the sessions that were opened with other tokens than these."""
        for session, token in self._shown.items():
            if all(token.value != one.value for one in tokens):
                session.end(_revoked())

    async def close(self, grace: float) -> None:
        """Refuses new sessions and questions; ends each session when its questions are answered, or after `grace` s."""
        self._identity = self._shop = None
        self._refusal = UnavailableError("the server is stopping; try again later or elsewhere", reason="STOPPING")
        for session in self._places:
            session.drain(self._refusal)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self.deserted()
        for session in self._places:
            session.end(self._refusal)

    async def deserted(self) -> None:
        """Until no session is open."""
        await self._left.wait()

    async def Session(
        self,
        request_iterator: AsyncIterable[tofc_pb2.SessionRequest],
        context: "grpc.aio.ServicerContext[tofc_pb2.SessionRequest, tofc_pb2.SessionResponse]",
    ) -> None:
        refusal = self._refused()
        error = refusal or await self._serve(request_iterator, context)
        if refusal is not None:
            with contextlib.suppress(TimeoutError):  # the status says it too
                async with asyncio.timeout(PATIENCE):
                    await context.write(tofc_pb2.SessionResponse(error=to_message(refusal)))
        if error is not None:
            await abort(context, error)  # whose frames gRPC keeps for a while: this one holds no session

    def _refused(self) -> TofcError | None:
        """Why no session can be opened now."""
        if self._identity is None or self._shop is None:
            return self._refusal
        try:
            self._places.check()
        except LimitError as error:
            return error
        return None

    async def _serve(
        self,
        request_iterator: AsyncIterable[tofc_pb2.SessionRequest],
        context: "grpc.aio.ServicerContext[tofc_pb2.SessionRequest, tofc_pb2.SessionResponse]",
    ) -> TofcError | None:
        assert self._identity is not None and self._shop is not None, "else it is refused"
        token = shown(self._tokens(), context.invocation_metadata() or ()) if self._tokens else None
        if self._tokens and token is None:  # since the call was let in
            return _revoked()
        session = Session(
            name=f"session {next(self._numbers)} ({self._who(token, context)})",
            identity=self._identity,
            limits=self._limits,
            pictures=self.pictures,
            shop=self._shop,
            outbox=Outbox(context.write),
            hello_timeout=self.settings.hello_timeout,
            greeted=self._places.enter,
        )
        self._places.open(session, context.peer())
        if token is not None:
            self._shown[session] = token
        self._left.clear()
        try:
            return await session.run(request_iterator)
        finally:
            self._places.leave(session)
            self._shown.pop(session, None)
            if not any(self._places):
                self._left.set()

    def _who(self, token: Token | None, context: "grpc.aio.ServicerContext[Any, Any]") -> str:
        """The device's name, by its token or else by its certificate, and where it calls from."""
        names = [token.name] if token is not None else []
        if self.settings.tls_client_ca is not None:
            names += [name.decode(errors="replace") for name in context.auth_context().get("x509_common_name", ())]
        return ", ".join([*[name for name in names if name][:1], context.peer()])

    async def GetServerInfo(
        self,
        request: tofc_pb2.GetServerInfoRequest,
        context: "grpc.aio.ServicerContext[tofc_pb2.GetServerInfoRequest, tofc_pb2.GetServerInfoResponse]",
    ) -> tofc_pb2.GetServerInfoResponse:
        identity, shop = self._identity, self._shop
        if identity is None or shop is None:
            await abort(context, self._refusal)
            raise InternalError  # abort raises
        return tofc_pb2.GetServerInfoResponse(
            server_version=identity.version,
            model_id=identity.model_id,
            codec_id=identity.codec_id,
            engine=shop.engine.name,
            limits=self._limits.message,
        )


def _revoked() -> TokenError:
    return TokenError(
        "this device's token was revoked; ask whoever runs the server for another one", reason="TOKEN_REVOKED"
    )
