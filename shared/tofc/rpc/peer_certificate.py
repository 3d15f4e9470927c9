"""The expiry of a server's certificate, fetched without gRPC, which does not reveal it.

Promises a date only for a certificate that is trusted apart from its dates. Leaves the message to `connection_errors`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from datetime import datetime

from tofc.rpc.address import split_address
from tofc.rpc.certificate_files import expiry_time
from tofc.rpc.security import ClientSecurity

NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which `ssl` does not name
TIMEOUT_S = 10.0


async def fetch_expiry(address: str, security: ClientSecurity) -> datetime | None:
    """Fetch when a server's certificate expires; None where that cannot be found out."""
    host, port = split_address(address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # as strict as gRPC: without the checks that newer Pythons add
    if security.ca is not None:
        context.load_verify_locations(cadata=security.ca.decode("ascii", "ignore"))
    else:
        context.load_default_certs()
    context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    context.set_alpn_protocols(["h2"])
    with contextlib.suppress(OSError, TimeoutError, ValueError):  # ValueError: a name that TLS does not allow
        async with asyncio.timeout(TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
            try:
                certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            finally:
                writer.transport.abort()
            return expiry_time(certificate) if certificate else None
    return None
