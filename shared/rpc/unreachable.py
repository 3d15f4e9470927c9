"""Why a server could not be reached, for a person: what was dialled, what happened, what to do.

Promises to name the proxy that gRPC dialled instead, where the environment names one, and never its password. Leaves
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

import grpc

from shared.rpc.certificate_files import ends
from shared.rpc.channel import ClientSecurity, is_loopback, split_address
from shared.rpc.errors import TofcError, UnavailableError
from shared.rpc.peer_certificate import valid_until

PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # the first that is set counts, as gRPC does it
EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
_TLS_FAILED = re.compile(r"SSL_ERROR_SSL.*OPENSSL_internal:([^:]*)|Hostname Verification Check failed")


_NOT_NOW = re.compile(r"CERTIFICATE_VERIFY_FAILED: certificate (has expired|is not yet valid)")


class TlsError(TofcError):
    """The two sides found no TLS that this one trusts. No UnavailableError: trying again does not help."""

    status = grpc.StatusCode.UNAVAILABLE
    reason = "TLS_FAILED"


@dataclass(frozen=True, kw_only=True)
class Dialled:
    """A server's address, and the proxy on the way to it: its URL and the variable that names it."""

    address: str
    proxy: str = ""
    variable: str = ""

    @classmethod
    def of(cls, address: str, environment: Mapping[str, str] = os.environ) -> Dialled:
        """What gRPC dials for an address.

        >>> Dialled.of("edge.example.org:5", {"https_proxy": "http://me:secret@proxy:3128"})
        Dialled(address='edge.example.org:5', proxy='http://proxy:3128', variable='https_proxy')
        """
        host, _ = split_address(address)
        variable = next((name for name in PROXIES if name in environment), "")
        scheme, _, rest = environment.get(variable, "").partition("://")
        place = urlsplit(f"//{rest}").netloc.rpartition("@")[2]
        if scheme.lower() != "http" or not place or is_loopback(host) or _excepted(host, environment):
            return cls(address=address)
        return cls(address=address, proxy=f"http://{place}", variable=variable)

    def __str__(self) -> str:
        return f"{self.address} through the proxy {self._named}" if self.proxy else self.address

    @property
    def _named(self) -> str:
        return f"{self.proxy} that {self.variable} names"

    @property
    def _direct(self) -> str:
        host, _ = split_address(self.address)
        return f"; to dial it without the proxy set no_proxy={host}" if self.proxy else ""

    def silent(self, seconds: float, *, option: str = "--server ") -> UnavailableError:
        """Nobody answered in time."""
        return UnavailableError(
            f"{self} did not answer within {seconds:g} s; check the address, the link and firewalls on the way, or "
            f"give another {option}HOST:PORT{self._direct}"
        )

    async def explain(self, security: ClientSecurity, message: str, *, option: str = "--server ") -> TofcError:
        """`failed`, with the dates of a certificate that is not valid now."""
        if dated := _NOT_NOW.search(message):
            return TlsError(await self._not_now(security, dated[1] == "has expired"))
        return self.failed(security, message, option=option)

    async def _not_now(self, security: ClientSecurity, ended: bool) -> str:
        now = datetime.now(UTC)
        if not ended:
            return (
                f"the certificate of {self} is not valid yet; this machine's clock says {now:%Y-%m-%d %H:%M} UTC: "
                "set it, if that is wrong"
            )
        clock = f" (this machine's clock says {now:%Y-%m-%d})"
        if security.ca is not None and (own := max(ends(security.ca), default=now)) < now:
            return (
                f"the authority that --tls-ca names ended on {own:%Y-%m-%d}{clock}; ask whoever runs {self} for a new "
                "ca.pem"
            )
        end = None if self.proxy else await valid_until(self.address, security)
        when = f" on {end:%Y-%m-%d}" if end else ""
        return (
            f"the certificate of {self} ended{when}{clock}; whoever runs that server renews it with `edge-server "
            "credentials`"
        )

    def failed(self, security: ClientSecurity, message: str, *, option: str = "--server ") -> TofcError:
        """`message` is gRPC's; `option` names the one that the address was given with."""
        cause, host = short(message), split_address(self.address)[0]
        if refused := _TLS_FAILED.search(message):
            return TlsError(
                f"no trusted TLS with {self} ({refused[1] or refused[0]}); give its authority with --tls-ca FILE.pem, "
                f"the name in its certificate with {option}HOST:PORT, or leave TLS out if the server has none"
                f"{self._direct}"
            )
        if unknown := re.search(r"errors resolving (.*?): \[", message):
            cause = cause.rstrip("]")
            if self.proxy and unknown[1] != self.address:
                return UnavailableError(
                    f"the proxy {self._named} has no address ({cause}), so {self.address} was not reached; correct "
                    f"{self.variable}{self._direct}"
                )
            return UnavailableError(
                f"the name {host} of {self.address} has no address ({cause}); check the name and this machine's DNS, "
                f"or give another {option}HOST:PORT"
            )
        if code := re.search(r"HTTP proxy returned response code (\d+)", message):
            return UnavailableError(
                f"the proxy {self._named} does not connect to {self.address} (HTTP status {code[1]}); let it, or "
                f"correct {self.variable}{self._direct}"
            )
        if cause.startswith("Socket closed") and not security.encrypted:  # it listens, and hangs up on what it hears
            return UnavailableError(
                f"whoever listens at {self} is no edge server without TLS ({cause}); if it is one with TLS, give "
                f"--tls-ca FILE.pem and --token-file FILE, else give another {option}HOST:PORT"
            )
        if cause.startswith("Socket closed") and security.encrypted and not self.proxy:  # else the proxy may have
            shown = "wants a client certificate"
            if security.certificate is not None:
                end = min(ends(security.certificate), default=datetime.max.replace(tzinfo=UTC))
                ended = f", which ended on {end:%Y-%m-%d}" if end < datetime.now(UTC) else ""
                shown = f"does not accept this client certificate{ended}"
            return UnavailableError(
                f"whoever listens at {self} hung up without a word ({cause}): it stopped, or it {shown} (--tls-cert "
                "and --tls-key, from whoever runs it)"
            )
        last = re.search(r"ipv[46]:([^ ]*\d): ", message)
        if last and (tried := unquote(last[1])) != self.address:  # a name may have several addresses
            cause = f"{cause} by {tried}"
        where = "" if is_loopback(host) else " there"
        return UnavailableError(
            f"no edge server at {self} ({cause}); start one{where} with `edge-server serve --model PATH`, or give "
            f"another {option}HOST:PORT{self._direct}"
        )


def short(message: str) -> str:
    """The end of gRPC's chain of causes: 'failed to connect to all addresses; last error: …: Connection refused'."""
    said = re.search(r"gRPC says: (.*)\)$", message, re.DOTALL)
    cause = said[1].rpartition(": ")[2] if said else message
    return re.sub(r" \(\d+\)$", "", cause)


def _excepted(host: str, environment: Mapping[str, str]) -> bool:
    """Whether gRPC dials a host without a proxy: its name ends like an entry, or its address lies in one."""
    variable = next((name for name in EXCEPTIONS if name in environment), "")
    entries = (entry.strip().lower() for entry in environment.get(variable, "").split(","))
    return any(host.lower().endswith(entry) or _within(host, entry) for entry in entries if entry)


def _within(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
