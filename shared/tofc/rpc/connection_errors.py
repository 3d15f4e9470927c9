"""Why a server could not be reached: turns gRPC's message into one that says what was dialled and what to do.

Promises to name the proxy that gRPC dialled, if the environment sets one, and never its password. Leaves
dialling to `channel`.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote, urlsplit

from tofc.errors import CallError, TlsError, UnavailableError
from tofc.rpc.address import is_loopback, split_address
from tofc.rpc.certificate_files import expiry_times
from tofc.rpc.peer_certificate import fetch_expiry
from tofc.rpc.security import ClientSecurity

PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # environment variables; gRPC uses the first that is set
EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
_TLS_FAILED = re.compile(r"SSL_ERROR_SSL.*OPENSSL_internal:([^:]*)|Hostname Verification Check failed")
_OUTSIDE_DATES = re.compile(r"CERTIFICATE_VERIFY_FAILED: certificate (has expired|is not yet valid)")


@dataclass(frozen=True, kw_only=True)
class DialTarget:
    """What gRPC dials: a server's address, or a proxy on the way to it."""

    address: str
    """HOST:PORT of the server."""
    proxy: str = ""
    """URL of the proxy; empty: none."""
    variable: str = ""
    """Environment variable that names the proxy."""

    @classmethod
    def of(cls, address: str, environment: Mapping[str, str] = os.environ) -> DialTarget:
        """Find out what gRPC dials for an address.

        >>> DialTarget.of("edge.example.org:5", {"https_proxy": "http://me:secret@proxy:3128"})
        DialTarget(address='edge.example.org:5', proxy='http://proxy:3128', variable='https_proxy')
        """
        host, _ = split_address(address)
        variable = next((name for name in PROXIES if name in environment), "")
        scheme, _, rest = environment.get(variable, "").partition("://")
        netloc = urlsplit(f"//{rest}").netloc.rpartition("@")[2]
        if scheme.lower() != "http" or not netloc or is_loopback(host) or _bypasses_proxy(host, environment):
            return cls(address=address)
        return cls(address=address, proxy=f"http://{netloc}", variable=variable)

    def __str__(self) -> str:
        return f"{self.address} through the proxy {self._proxy_name}" if self.proxy else self.address

    @property
    def _proxy_name(self) -> str:
        return f"{self.proxy} (set by {self.variable})"

    @property
    def _bypass_hint(self) -> str:
        host, _ = split_address(self.address)
        return f"; to dial it without the proxy set no_proxy={host}" if self.proxy else ""

    def timeout_error(self, timeout_s: float, *, option: str = "--server ") -> UnavailableError:
        """Return the error for a server that did not answer in time."""
        return UnavailableError(
            f"{self} did not answer within {timeout_s:g} s; check the address, the link and firewalls on the way, or "
            f"give another {option}HOST:PORT{self._bypass_hint}"
        )

    async def diagnose(self, security: ClientSecurity, message: str, *, option: str = "--server ") -> CallError:
        """Return `connection_error`, or an error with the dates of a certificate that is not valid now."""
        if dated := _OUTSIDE_DATES.search(message):
            return TlsError(await self._dates_message(security, expired=dated[1] == "has expired"))
        return self.connection_error(security, message, option=option)

    async def _dates_message(self, security: ClientSecurity, *, expired: bool) -> str:
        now = datetime.now(UTC)
        if not expired:
            return (
                f"the certificate of {self} is not valid yet; this machine's clock says {now:%Y-%m-%d %H:%M} UTC: "
                "set it, if that is wrong"
            )
        clock = f" (this machine's clock says {now:%Y-%m-%d})"
        if security.ca is not None and (own := max(expiry_times(security.ca), default=now)) < now:
            return (
                f"the authority that --tls-ca names expired on {own:%Y-%m-%d}{clock}; ask whoever runs {self} for a "
                "new ca.pem"
            )
        end = None if self.proxy else await fetch_expiry(self.address, security)
        when = f" on {end:%Y-%m-%d}" if end else ""
        return (
            f"the certificate of {self} expired{when}{clock}; whoever runs that server can renew it with `edge-server "
            "credentials`"
        )

    def connection_error(self, security: ClientSecurity, message: str, *, option: str = "--server ") -> CallError:
        """Turn gRPC's message into an error; `option` is the option that the address was given with."""
        cause, host = root_cause(message), split_address(self.address)[0]
        if refused := _TLS_FAILED.search(message):
            return TlsError(
                f"no TLS connection with {self} that both sides trust ({refused[1] or refused[0]}); give its authority "
                f"with --tls-ca FILE.pem, the name in its certificate with {option}HOST:PORT, or leave TLS out if the "
                f"server has none{self._bypass_hint}"
            )
        if unknown := re.search(r"errors resolving (.*?): \[", message):
            cause = cause.rstrip("]")
            if self.proxy and unknown[1] != self.address:
                return UnavailableError(
                    f"the proxy {self._proxy_name} has no address ({cause}), so {self.address} was not reached; "
                    f"correct {self.variable}{self._bypass_hint}"
                )
            return UnavailableError(
                f"the name {host} of {self.address} has no address ({cause}); check the name and this machine's DNS, "
                f"or give another {option}HOST:PORT"
            )
        if code := re.search(r"HTTP proxy returned response code (\d+)", message):
            return UnavailableError(
                f"the proxy {self._proxy_name} does not connect to {self.address} (HTTP status {code[1]}); allow it "
                f"there, or correct {self.variable}{self._bypass_hint}"
            )
        if cause.startswith("Socket closed") and not security.encrypted:  # it accepts connections and closes them
            return UnavailableError(
                f"{self} does not accept connections without TLS ({cause}); if it is an edge server with TLS, give "
                f"--tls-ca FILE.pem and --token-file FILE, else give another {option}HOST:PORT"
            )
        # Not with a proxy, which may have closed the connection itself.
        if cause.startswith("Socket closed") and security.encrypted and not self.proxy:
            refusal = "requires a client certificate"
            if security.certificate is not None:
                end = min(expiry_times(security.certificate), default=datetime.max.replace(tzinfo=UTC))
                expired = f", which expired on {end:%Y-%m-%d}" if end < datetime.now(UTC) else ""
                refusal = f"does not accept this client certificate{expired}"
            return UnavailableError(
                f"{self} closed the connection without giving a reason ({cause}): it stopped, or it {refusal} "
                "(--tls-cert and --tls-key, from whoever runs it)"
            )
        last = re.search(r"ipv[46]:([^ ]*\d): ", message)
        if last and (tried := unquote(last[1])) != self.address:  # a name may have several addresses
            cause = f"{cause} by {tried}"
        where = "" if is_loopback(host) else " there"
        return UnavailableError(
            f"no edge server at {self} ({cause}); start one{where} with `edge-server serve --model PATH`, or give "
            f"another {option}HOST:PORT{self._bypass_hint}"
        )


def root_cause(message: str) -> str:
    """Return the end of gRPC's chain of causes: 'Connection refused' of 'failed to connect …: Connection refused'."""
    found = re.search(r"gRPC says: (.*)\)$", message, re.DOTALL)
    cause = found[1].rpartition(": ")[2] if found else message
    return re.sub(r" \(\d+\)$", "", cause)


def _bypasses_proxy(host: str, environment: Mapping[str, str]) -> bool:
    """Say whether gRPC dials a host without the proxy: its name ends with an entry, or its address is in one."""
    variable = next((name for name in EXCEPTIONS if name in environment), "")
    entries = (entry.strip().lower() for entry in environment.get(variable, "").split(","))
    return any(host.lower().endswith(entry) or _within(host, entry) for entry in entries if entry)


def _within(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
