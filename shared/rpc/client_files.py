"""What a client shows and trusts, from the files that its options name.

Promises that files which do not fit are told before anything is dialled, and that a certificate which ends soon is said
in a sentence. Leaves dialling to `channel`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from shared.rpc.certificate_files import check_authorities, check_pair, ends, warning
from shared.rpc.channel import ClientSecurity, read_token
from shared.secret_file import check_private
from shared.text import read_pem


def client_security(
    *,
    token_file: Path | None = None,
    tls: bool = False,
    tls_ca: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> ClientSecurity:
    """`warn` hears of certificates that have ended or soon will. Raises UnsafeAddressError, ValueError, OSError."""
    options = {"--token-file": token_file, "--tls-ca": tls_ca, "--tls-cert": tls_cert, "--tls-key": tls_key}
    for option, file in options.items():
        if file is not None and not file.exists():  # it may be a pipe, as of <(…)
            raise ValueError(f"{option} {file} does not exist; give the path of a file")
    security = ClientSecurity(
        tls=tls,
        ca=read_pem(tls_ca) if tls_ca else None,
        certificate=read_pem(tls_cert) if tls_cert else None,
        key=read_pem(tls_key) if tls_key else None,
        token=read_token(token_file) if token_file else None,
    )
    if tls_ca is not None and security.ca is not None:
        check_authorities(security.ca, tls_ca, "--tls-ca")
        # Of two, one may be on its way out.
        _tell(f"the authority in {tls_ca}", max(ends(security.ca), default=None), warn)
    if tls_cert is not None and tls_key is not None and security.certificate is not None:
        check_pair(tls_cert, tls_key)
        _tell(f"the client certificate {tls_cert}", min(ends(security.certificate), default=None), warn)
    for secret in (token_file, tls_key):
        if secret is not None:
            check_private(secret)
    return security


def _tell(what: str, end: datetime | None, warn: Callable[[str], None]) -> None:
    if end is not None and (told := warning(what, end)):
        warn(f"{told}; ask whoever runs the server for a new one")
