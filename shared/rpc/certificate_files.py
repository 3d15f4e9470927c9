"""Files of certificates: whether they fit, and until when they are valid.

Promises a sentence for what is wrong with one, with the standard library alone: a device needs no other. Leaves whether
a certificate is trusted to TLS, and making one to the server.
"""

from __future__ import annotations

import base64
import contextlib
import re
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

SOON = timedelta(days=14)
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)
_TIME = rb"(?:\x17\x0d(\d{12})|\x18\x0f(\d{14}))Z"
_VALIDITY = re.compile(rb"\x30[\x1e-\x22]" + _TIME + _TIME, re.DOTALL)  # RFC 5280: a sequence of two times


def check_pair(certificate: Path, key: Path) -> None:
    """Raises ValueError where a certificate chain and a key do not belong together."""
    if not (certificate.is_file() and key.is_file()):  # a pipe can be read once
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"{key} is not the key of {certificate}; give the one that belongs to it") from None
        if not ends(certificate.read_bytes()):
            raise ValueError(f"{certificate} holds no certificate in PEM; give that of the key {key}") from None
        raise ValueError(f"{key} holds no key in PEM, or one with a password; give the key of {certificate}") from None


def check_authorities(pem: bytes, path: Path, option: str) -> None:
    """Raises ValueError where a PEM file holds none."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError):  # ValueError for nothing at all
        raise ValueError(f"{option} {path} holds no certificate in PEM; give the authority's") from None


def ends(pem: bytes) -> list[datetime]:
    """The last moment of each certificate that can be read."""
    found = []
    for text in _PEM.findall(pem):
        with contextlib.suppress(ValueError):
            found.append(end_of(base64.b64decode(text)))
    return [end for end in found if end is not None]


def end_of(der: bytes) -> datetime | None:
    """The last moment of a certificate."""
    if (found := _VALIDITY.search(der)) is None:
        return None
    short, long = found[3], found[4]
    if short is not None:  # two digits of the year: 1950 to 2049
        long = (b"19" if short >= b"50" else b"20") + short
    return datetime.strptime(long.decode(), "%Y%m%d%H%M%S").replace(tzinfo=UTC)


def warning(what: str, end: datetime, now: datetime | None = None) -> str:
    """What to say about a certificate that has ended or soon will, else nothing.

    >>> warning("cert.pem", datetime(2027, 1, 3, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    'cert.pem is valid until 2027-01-03, 2 days from now'
    >>> warning("cert.pem", datetime(2027, 1, 3, tzinfo=UTC), datetime(2027, 1, 4, tzinfo=UTC))
    'cert.pem ended on 2027-01-03'
    >>> warning("cert.pem", datetime(2027, 1, 3, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
    ''
    """
    left = end - (now or datetime.now(UTC))
    if left <= timedelta(0):
        return f"{what} ended on {end:%Y-%m-%d}"
    return f"{what} is valid until {end:%Y-%m-%d}, {left.days} days from now" if left < SOON else ""
