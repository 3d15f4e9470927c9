"""Who may connect: the server's certificate, its clients' authorities and tokens, as their files are now.

Promises that a renewed file is used from the next handshake or call on, that the sessions of a revoked token end within
seconds, and that a certificate which expires soon is logged each day. Leaves reading files to `file_reload` and
refusing calls to `tofc.rpc.auth`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn

from edge_server.file_reload import ReloadedFiles
from edge_server.settings import ServerSettings
from tofc.rpc.auth import TokenInterceptor
from tofc.rpc.certificate_files import expiry_times, expiry_warning
from tofc.rpc.security import ServerSecurity
from tofc.rpc.tokens import Token

log = logging.getLogger(__name__)

CHECK_S = 1.0  # between two checks of the tokens of open sessions
DAY_S = 86_400.0


class Access:
    """The server's own credentials, and those that clients must have."""

    def __init__(self, settings: ServerSettings) -> None:
        """Read the files. Raises UsageError (SecurityError), OSError."""
        self._settings = settings
        self.tokens: Callable[[], Sequence[Token]] | None = None
        if settings.token_file is not None:
            self.tokens = ReloadedFiles([settings.token_file], settings.tokens)
        files = (settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        self._tls = ReloadedFiles([file for file in files if file is not None], settings.tls)

    @property
    def security(self) -> ServerSecurity:
        """The settings to bind the port with; at each TLS handshake they are updated from the files."""
        token = self.tokens()[0].value if self.tokens else None
        return replace(self._tls(), token=token, current=self._tls)

    @property
    def interceptors(self) -> list[TokenInterceptor]:
        """The interceptors that refuse calls without a valid token."""
        return [TokenInterceptor(self.tokens)] if self.tokens else []

    async def watch(self, check: Callable[[Sequence[Token]], None]) -> NoReturn:
        """Call `check` with the valid tokens every CHECK_S seconds, and warn once a day of certificates that expire."""
        warned = -DAY_S
        while True:
            if time.monotonic() - warned >= DAY_S:
                warned = time.monotonic()
                self._warn()
            if self.tokens is not None:
                check(self.tokens())
            await asyncio.sleep(CHECK_S)

    def _warn(self) -> None:
        security = self._tls()
        settings = self._settings
        for path, pem, choose in (
            (settings.tls_cert, security.certificate, min),  # a chain is valid until its first certificate expires
            (settings.tls_client_ca, security.client_ca, max),  # of several authorities the oldest is being replaced
        ):
            times = expiry_times(pem) if pem is not None else []
            if times and (text := expiry_warning(f"the certificate in {path}", choose(times))):
                log.warning("%s; renew it (edge-server credentials): the server uses it without a restart", text)
