"""The certificate that a server shows, asked for apart from gRPC, which does not tell it.

Promises an answer only for a certificate that is trusted but for its dates. Leaves what to say of it to `unreachable`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from datetime import datetime

from shared.rpc.certificate_files import end_of
from shared.rpc.channel import ClientSecurity, split_address

NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME, for which `ssl` has no name
TRY_S = 10.0


async def valid_until(address: str, security: ClientSecurity) -> datetime | None:
    """The last moment of a server's certificate; None where it cannot be had."""
    host, port = split_address(address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # as gRPC checks: without what newer Pythons add
    if security.ca is not None:
        context.load_verify_locations(cadata=security.ca.decode("ascii", "ignore"))
    else:
        context.load_default_certs()
    context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    context.set_alpn_protocols(["h2"])
    with contextlib.suppress(OSError, TimeoutError, ValueError):  # ValueError of a name that TLS does not know
        async with asyncio.timeout(TRY_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
            try:
                certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            finally:
                writer.transport.abort()
            return end_of(certificate) if certificate else None
    return None
