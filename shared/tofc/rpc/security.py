"""TLS and token settings of both sides, and where they are required.

Promises that half a TLS configuration is refused, and that nothing listens on or dials an address beyond this machine
without TLS and a token. Leaves reading files to `client_security` and to the server's settings, and checking
tokens to `auth`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tofc.errors import SecurityError
from tofc.rpc.address import is_loopback
from tofc.rpc.tokens import read_tokens

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class ClientSecurity:
    """A client's credentials and the authorities that it trusts.

    Raises `SecurityError` for settings that do not fit together.
    """

    tls: bool = False
    """Use TLS; without `ca` the system's authorities are trusted."""
    ca: bytes | None = field(default=None, repr=False)
    """PEM certificates of the authorities to trust instead; implies TLS."""
    certificate: bytes | None = field(default=None, repr=False)
    """PEM certificate chain of the client, for a server that asks for one; comes with `key`."""
    key: bytes | None = field(default=None, repr=False)
    """PEM private key of `certificate`."""
    token: str | None = field(default=None, repr=False)
    """Token sent with every call."""

    def __post_init__(self) -> None:
        _require_pair("the client certificate", self.certificate, self.key)
        if self.certificate is not None and not self.encrypted:
            raise SecurityError("a client certificate needs TLS; give --tls-ca FILE.pem, or --tls")

    @property
    def encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return self.tls or self.ca is not None

    @property
    def metadata(self) -> Metadata:
        """Metadata for every call, as in `stub.Session(metadata=security.metadata)`."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


@dataclass(frozen=True, kw_only=True)
class ServerSecurity:
    """A server's credentials and those that clients must have.

    Raises `SecurityError` for settings that do not fit together.
    """

    certificate: bytes | None = field(default=None, repr=False)
    """PEM certificate chain; comes with `key`. None: no TLS."""
    key: bytes | None = field(default=None, repr=False)
    """PEM private key of `certificate`."""
    client_ca: bytes | None = field(default=None, repr=False)
    """PEM certificates of authorities; clients need a certificate signed by one of them. None: they need none."""
    token: str | None = field(default=None, repr=False)
    """A token that clients must send; None: no tokens."""
    current: Callable[[], ServerSecurity] | None = field(default=None, repr=False, compare=False)
    """Called at each TLS handshake for renewed certificates; whether clients need one must not change."""

    def __post_init__(self) -> None:
        _require_pair("TLS", self.certificate, self.key)
        if self.client_ca is not None and not self.encrypted:
            raise SecurityError(
                "client certificates (--tls-client-ca) need TLS; give the server's own with --tls-cert and --tls-key"
            )

    @property
    def encrypted(self) -> bool:
        """Whether connections use TLS."""
        return self.certificate is not None


def read_token(path: Path) -> str:
    """Read the first token of a file, the one a client sends. Raises `SecurityError`, `EncodingError`, OSError."""
    return read_tokens(path)[0].value


def require_safe(verb: str, host: str, encrypted: bool, token: str | None) -> None:
    """Raise `SecurityError` for a host beyond this machine without TLS and a token; `verb` begins the message."""
    if is_loopback(host) or (encrypted and token):
        return
    tls = "TLS (--tls-ca)" if verb == "dialling" else "TLS (--tls-cert and --tls-key)"
    missing = " and ".join([tls] * (not encrypted) + ["a token (--token-file)"] * (not token))
    raise SecurityError(
        f"{verb} {host!r} needs TLS and a token, because it is not this machine; missing: {missing}. "
        "Without them only 127.0.0.1, ::1 and localhost are allowed."
    )


def _require_pair(what: str, certificate: bytes | None, key: bytes | None) -> None:
    if (certificate is None) != (key is None):
        missing = "key" if key is None else "certificate"
        raise SecurityError(
            f"{what} is half configured: the {missing} is missing; give certificate and key (--tls-cert and --tls-key)"
        )


#: without TLS and token, for this machine alone
PLAIN_CLIENT, PLAIN_SERVER = ClientSecurity(), ServerSecurity()
