"""Loads a client's TLS and token settings from the files that its options name.

Promises that files which do not fit together are refused before anything is dialled, and that certificates which expire
soon are warned of. Leaves dialling to `channel`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from tofc.rpc.certificate_files import check_authorities, check_pair, expiry_times, expiry_warning
from tofc.rpc.security import ClientSecurity, read_token
from tofc.secret_file import check_exist, check_private
from tofc.text import read_pem


def load_client_security(
    *,
    token_file: Path | None = None,
    tls: bool = False,
    tls_ca: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> ClientSecurity:
    """Read and check the files. `warn` is called with a sentence about certificates that have expired or soon will.

    Raises `SecurityError`, `UsageError`, OSError.
    """
    check_exist(
        {"--token-file": token_file, "--tls-ca": tls_ca, "--tls-cert": tls_cert, "--tls-key": tls_key},
        "give the path of a file",
    )
    security = ClientSecurity(
        tls=tls,
        ca=read_pem(tls_ca) if tls_ca else None,
        certificate=read_pem(tls_cert) if tls_cert else None,
        key=read_pem(tls_key) if tls_key else None,
        token=read_token(token_file) if token_file else None,
    )
    if tls_ca is not None and security.ca is not None:
        check_authorities(security.ca, tls_ca, "--tls-ca")
        # The latest, because of two authorities one is being replaced by the other.
        _warn_of_expiry(f"the authority in {tls_ca}", max(expiry_times(security.ca), default=None), warn)
    if tls_cert is not None and tls_key is not None and security.certificate is not None:
        check_pair(tls_cert, tls_key)
        _warn_of_expiry(
            f"the client certificate {tls_cert}", min(expiry_times(security.certificate), default=None), warn
        )
    for secret in (token_file, tls_key):
        if secret is not None:
            check_private(secret)
    return security


def _warn_of_expiry(what: str, end: datetime | None, warn: Callable[[str], None]) -> None:
    if end is not None and (message := expiry_warning(what, end)):
        warn(f"{message}; ask whoever runs the server for a new one")
