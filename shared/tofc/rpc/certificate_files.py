"""Certificate files: whether certificate and key match, and when certificates expire.

Promises messages that say what is wrong with a file, and needs only the standard library, as devices have no other.
Leaves to TLS whether a certificate is trusted, and to the server how to make one.
"""

from __future__ import annotations

import base64
import contextlib
import re
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tofc.errors import UsageError

RENEW_BEFORE = timedelta(days=14)  # certificates that expire sooner are warned of, or renewed
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)
_TIME = rb"(?:\x17\x0d(\d{12})|\x18\x0f(\d{14}))Z"
_VALIDITY = re.compile(rb"\x30[\x1e-\x22]" + _TIME + _TIME, re.DOTALL)  # RFC 5280: a sequence of two times


def check_pair(certificate: Path, key: Path) -> None:
    """Raise `UsageError` if a certificate chain and a key do not belong together."""
    if not (certificate.is_file() and key.is_file()):  # a pipe, which can be read only once
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(f"{key} is not the key of {certificate}; give the key that belongs to it") from None
        if not expiry_times(certificate.read_bytes()):
            raise UsageError(
                f"{certificate} holds no certificate in PEM; give the certificate of the key {key}"
            ) from None
        raise UsageError(
            f"{key} holds no key in PEM, or a key with a password; give the key of {certificate} without one"
        ) from None


def check_authorities(pem: bytes, path: Path, option: str) -> None:
    """Raise `UsageError` if a PEM file holds no certificate; `option` names the file's option."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError):  # ValueError: empty
        raise UsageError(f"{option} {path} holds no certificate in PEM; give the certificate of an authority") from None


def expiry_times(pem: bytes) -> list[datetime]:
    """Return when each certificate in a PEM file expires, as far as it can be read."""
    found = []
    for text in _PEM.findall(pem):
        with contextlib.suppress(ValueError):
            found.append(expiry_time(base64.b64decode(text)))
    return [end for end in found if end is not None]


def expiry_time(der: bytes) -> datetime | None:
    """Return when a DER certificate expires; None if it cannot be read."""
    if (found := _VALIDITY.search(der)) is None:
        return None
    short, long = found[3], found[4]
    if short is not None:  # a year of two digits: 1950 to 2049
        long = (b"19" if short >= b"50" else b"20") + short
    return datetime.strptime(long.decode(), "%Y%m%d%H%M%S").replace(tzinfo=UTC)


def expiry_warning(what: str, end: datetime, now: datetime | None = None) -> str:
    """Return a warning if the certificate `what` has expired or expires within RENEW_BEFORE, else an empty string.

    >>> expiry_warning("cert.pem", datetime(2027, 1, 3, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    'cert.pem is valid until 2027-01-03, 2 days from now'
    >>> expiry_warning("cert.pem", datetime(2027, 1, 3, tzinfo=UTC), datetime(2027, 1, 4, tzinfo=UTC))
    'cert.pem expired on 2027-01-03'
    >>> expiry_warning("cert.pem", datetime(2027, 1, 3, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
    ''
    """
    left = end - (now or datetime.now(UTC))
    if left <= timedelta(0):
        return f"{what} expired on {end:%Y-%m-%d}"
    return f"{what} is valid until {end:%Y-%m-%d}, {left.days} days from now" if left < RENEW_BEFORE else ""
