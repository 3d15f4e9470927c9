"""Who gets in: the server's certificate, the authorities of its clients, and their tokens, all as their files are now.

Promises that a renewed file holds from the next handshake or call on, that whoever lost their token is gone within
seconds, and that a certificate which ends soon is in the log each day. Leaves files to `followed`, refusing to `auth`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn

from edge_server.followed import Followed
from edge_server.settings import ServerSettings
from shared.rpc.auth import TokenInterceptor
from shared.rpc.certificate_files import ends, warning
from shared.rpc.channel import ServerSecurity
from shared.rpc.tokens import Token

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks at the tokens of open sessions
DAY_S = 86_400.0


class Access:
    """What one server shows and asks for."""

    def __init__(self, settings: ServerSettings) -> None:
        """Reads the files. Raises UnsafeAddressError, ValueError, OSError."""
        self._settings = settings
        self.tokens: Callable[[], Sequence[Token]] | None = None
        if settings.token_file is not None:
            self.tokens = Followed([settings.token_file], settings.tokens)
        files = (settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        self._tls = Followed([file for file in files if file is not None], settings.tls)

    @property
    def security(self) -> ServerSecurity:
        token = self.tokens()[0].value if self.tokens else None
        return replace(self._tls(), token=token, current=self._tls)

    @property
    def interceptors(self) -> list[TokenInterceptor]:
        return [TokenInterceptor(self.tokens)] if self.tokens else []

    async def watch(self, keep: Callable[[Sequence[Token]], None]) -> NoReturn:
        """Calls `keep` with the tokens that hold, again and again."""
        warned = -DAY_S
        while True:
            if time.monotonic() - warned >= DAY_S:
                warned = time.monotonic()
                self._warn()
            if self.tokens is not None:
                keep(self.tokens())
            await asyncio.sleep(LOOK_S)

    def _warn(self) -> None:
        security = self._tls()
        for path, pem, last in (
            (self._settings.tls_cert, security.certificate, min),  # a chain is valid until its first end
            (self._settings.tls_client_ca, security.client_ca, max),  # of authorities one may be on its way out
        ):
            dates = ends(pem) if pem is not None else []
            if dates and (told := warning(f"the certificate in {path}", last(dates))):
                log.warning("%s; renew it (edge-server credentials): it is taken without a restart", told)
