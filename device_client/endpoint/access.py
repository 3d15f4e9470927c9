"""Who may use the endpoint: a key, the pages of allowed origins, and on the loopback only names of this machine.

Promises that a web page which a person happens to visit cannot use the endpoint: its browser names the page's origin,
and a name that an attacker points at 127.0.0.1 is not one of this machine. Leaves TLS to `serve`, and the headers that
allow an origin to starlette's CORSMiddleware.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from device_client.endpoint.errors import ApiError
from tofc.rpc.address import is_loopback
from tofc.rpc.tokens import Token

OPEN = ("/health", "/v1/health")  # without a key: it tells nothing but that the endpoint runs

OWNER = "tofc.owner"  # of a request's scope: a digest of its key, absent where there are none


class Access:
    """Refuses requests before anything is read of them."""

    def __init__(self, app: ASGIApp, *, keys: Sequence[Token], origins: Sequence[str], local: bool) -> None:
        """`keys`: one of them must be sent, if there are any; `local`: the endpoint listens on the loopback only."""
        self._app = app
        self._keys = keys
        self._origins = origins
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with an error."""
        if scope["type"] == "http" and (error := self._problem(scope["path"], Headers(scope=scope))) is not None:
            headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
            headers["Connection"] = "close"  # who is refused holds no place, also where there are no keys
            await JSONResponse(error.body, error.status, headers)(scope, receive, send)
            return
        if scope["type"] == "http" and self._keys:
            scope[OWNER] = hashlib.blake2b(Headers(scope=scope).get("authorization", "").encode()).hexdigest()
        await self._app(scope, receive, send)

    def _problem(self, path: str, headers: Headers) -> ApiError | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._local and not self._keys and not is_loopback(_name(host)):
            return ApiError(
                403,
                "host_not_allowed",
                f"the Host {host[:80]!r} is not a name of this machine; use 127.0.0.1 or localhost, or start the "
                "endpoint with --api-key-file",
            )
        if origin is not None and not self._allowed(origin, host):
            return ApiError(
                403,
                "origin_not_allowed",
                f"pages of {origin[:80]!r} may not use this endpoint; start it with --allow-origin {origin[:80]}",
            )
        if self._keys and path not in OPEN and not has_key(headers, self._keys):
            message = "the API key is missing or wrong; send Authorization: Bearer KEY"
            return ApiError(401, "invalid_api_key", message, kind="authentication_error")
        return None

    def _allowed(self, origin: str, host: str) -> bool:
        if "*" in self._origins or origin in self._origins:
            return True
        try:
            return urlsplit(origin).netloc == host
        except ValueError:  # it is no address
            return False


class CloseWithoutKey:
    """Ends the connection of whoever has no key after each response, a probe's or a page's first question too."""

    def __init__(self, app: ASGIApp, *, keys: Sequence[Token]) -> None:
        """`keys`: if there are none, every connection may stay."""
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http" or not self._keys or has_key(Headers(scope=scope), self._keys):
            await self._app(scope, receive, send)
            return

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, closing)


def has_key(headers: Headers, keys: Sequence[Token]) -> bool:
    """Whether one of the keys was sent."""
    sent = headers.get("authorization", "").encode()
    found = False
    for key in keys:  # compare with all of them, so that the time reveals nothing
        found |= hmac.compare_digest(sent, f"Bearer {key.value}".encode())
    return found


def _name(host: str) -> str:
    """Return a Host header without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host
