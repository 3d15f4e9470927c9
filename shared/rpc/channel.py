"""Every option of a channel and of a server, spelled once, and who may talk without TLS.

Promises that both sides agree on message sizes and keepalive, and that nothing listens on or dials an
address beyond this machine without TLS and a token. Leaves the checking of tokens to `auth`.

gRPC accepts unknown option names without a word, so no other module spells one.
"""

import errno
import ipaddress
import json
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio

from shared.rpc.errors import UnavailableError, UnsafeAddressError
from shared.rpc.tokens import read_tokens

UP_BYTES = 256 * 1024  # largest message to the server: a packet is a few hundred bytes
DOWN_BYTES = 1024 * 1024  # largest message to the device
CHUNK_BYTES = 32 * 1024  # of an image file in one message: small enough that a cancel soon gets its turn
DEFAULT_PORT = 50061
CONNECT_S = 30.0  # until a server has answered for the first time: TLS takes 18 s at 300 B/s and a second of round trip

# What a server may send of an answer before the device has read what came. A narrow link carries it in seconds, else
# the replies to pings would wait behind it, and the link count as lost; text needs no more.
# (A connection's window is 65 535 bytes whatever one asks for. gRPC fills it up to what was asked for, 13 bytes each
# time it writes; asked for less, it does so only once the difference is used up.)
ANSWER_WINDOW = 2 * 1024

KERNEL = 3  # times the patience with pings

Options = list[tuple[str, int | str]]
Metadata = tuple[tuple[str, str], ...]

SPARING: Options = [
    ("grpc.http2.bdp_probe", 0),  # 17 bytes after most messages, to find a window that packets never need
    ("grpc.compression_enabled_algorithms_bitset", 1),  # none: else both sides name those that they know
    ("grpc.http2.true_binary", 0),  # a setting for binary metadata, of which there is none
]


@dataclass(frozen=True, kw_only=True)
class Keepalive:
    """Pings that find out about a link that died silently, as mobile links do. Milliseconds.

    Such a link is heard of after `client_every` or `server_every`, and `timeout` more.
    """

    client_every: int = 20_000
    server_every: int = 22_000  # a little later, so that a device's ping is the only one
    timeout: int = 10_000  # for the reply to a ping
    permitted_every: int = 10_000  # a server cuts a client that pings more often

    def __post_init__(self) -> None:
        if self.client_every < self.permitted_every:
            raise ValueError(
                f"keepalive every {self.client_every} ms is more often than the {self.permitted_every} ms "
                "that the server permits; raise client_every or lower permitted_every"
            )

    def options(self, every: int) -> Options:
        """Of the side that pings when it has heard nothing for `every`."""
        return [
            ("grpc.keepalive_time_ms", every),
            # In which a ping must be replied to. gRPC does not begin to count what it calls the keepalive timeout
            # (its PR 39239); this one it counts, by itself 60 s.
            ("grpc.http2.ping_timeout_ms", self.timeout),
            # This goes to the kernel: how long what it sent may be unacknowledged, as it is while a question of many
            # kilobytes goes up a slow link.
            ("grpc.keepalive_timeout_ms", KERNEL * self.timeout),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]


KEEPALIVE = Keepalive()


@dataclass(frozen=True, kw_only=True)
class ClientSecurity:
    """What a device shows and trusts. `ca` (PEM) implies TLS; TLS without `ca` trusts the system's authorities.

    `certificate` and `key` are of the device itself, for a server that asks for them.
    """

    tls: bool = False
    ca: bytes | None = field(default=None, repr=False)
    certificate: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _require_pair("the client certificate", self.certificate, self.key)
        if self.certificate is not None and not self.encrypted:
            raise UnsafeAddressError("a client certificate is shown over TLS alone; give --tls-ca FILE.pem, or --tls")

    @property
    def encrypted(self) -> bool:
        return self.tls or self.ca is not None

    @property
    def metadata(self) -> Metadata:
        """To pass with every call: `stub.Session(metadata=security.metadata)`."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


@dataclass(frozen=True, kw_only=True)
class ServerSecurity:
    """What a server shows and asks for. Certificate chain and key are PEM and come together.

    With `client_ca` (PEM) clients have to show a certificate that one of its authorities signed. `current` says what
    holds at each handshake, as long as it asks clients for the same things.
    """

    certificate: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    client_ca: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    current: "Callable[[], ServerSecurity] | None" = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        _require_pair("TLS", self.certificate, self.key)
        if self.client_ca is not None and not self.encrypted:
            raise UnsafeAddressError(
                "client certificates (--tls-client-ca) need TLS; give the server's own with --tls-cert and --tls-key"
            )

    @property
    def encrypted(self) -> bool:
        return self.certificate is not None


def read_token(path: Path) -> str:
    """What a client shows: the first token of a file. Raises UnsafeAddressError, ValueError, OSError."""
    return read_tokens(path)[0].value


def _require_pair(what: str, certificate: bytes | None, key: bytes | None) -> None:
    if (certificate is None) != (key is None):
        missing = "key" if key is None else "certificate"
        raise UnsafeAddressError(
            f"{what} is half configured: the {missing} is missing; give certificate and key (--tls-cert and --tls-key)"
        )


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine and nothing else."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def split_address(address: str) -> tuple[str, int]:
    """'HOST:PORT', '[IPV6]:PORT' or a bare host (then port 50061) → (host without brackets, port)."""
    host, separator, port = address.rpartition(":")
    if not separator or address.endswith("]"):
        host, port = address, str(DEFAULT_PORT)
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or (":" in host and not bracketed) or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"address {address!r} is not HOST:PORT; write for instance 127.0.0.1:{DEFAULT_PORT}")
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """(host, port) → the address that gRPC and `split_address` read."""
    host = host.strip("[]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def client_options(keepalive: Keepalive = KEEPALIVE, *, proxy: bool = True) -> Options:
    """Options of a device's channel. `proxy` False ignores the environment's HTTP proxy."""
    retried = {
        "name": [{"service": "tofc.v1.TofcService", "method": "GetServerInfo"}],
        "retryPolicy": {
            "maxAttempts": 3,
            "initialBackoff": "0.2s",
            "maxBackoff": "2s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        },
    }
    return [
        ("grpc.max_send_message_length", UP_BYTES),
        ("grpc.max_receive_message_length", DOWN_BYTES),
        *keepalive.options(keepalive.client_every),
        *SPARING,
        ("grpc.http2.lookahead_bytes", ANSWER_WINDOW),
        # A connection a channel: else those of a process share one, and its limits.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", int(proxy)),
        ("grpc.min_reconnect_backoff_ms", int(CONNECT_S * 1e3) + 10_000),  # one try may take as long; by itself 20 s
        ("grpc.service_config", json.dumps({"methodConfig": [retried]})),
    ]


def server_options(keepalive: Keepalive = KEEPALIVE) -> Options:
    """Options of a server."""
    return [
        ("grpc.max_send_message_length", DOWN_BYTES),
        ("grpc.max_receive_message_length", UP_BYTES),
        *keepalive.options(keepalive.server_every),
        *SPARING,
        # A widely copied spelling with `recv` in it is ignored, and pinging clients are then cut.
        ("grpc.http2.min_ping_interval_without_data_ms", keepalive.permitted_every),
        # A device has one session on its connection; a stranger's headers, which compress 3 000 : 1, are held a stream.
        ("grpc.max_concurrent_streams", 8),
        ("grpc.so_reuseport", 0),  # a second server on one port must fail, not share the calls
    ]


def _require_safe(verb: str, host: str, encrypted: bool, token: str | None) -> None:
    if is_loopback(host) or (encrypted and token):
        return
    tls = "TLS (--tls-ca)" if verb == "dialling" else "TLS (--tls-cert and --tls-key)"
    missing = " and ".join([tls] * (not encrypted) + ["a token (--token-file)"] * (not token))
    raise UnsafeAddressError(
        f"{verb} {host!r} needs TLS and a token, because it is not this machine; missing: {missing}. "
        "Without them only 127.0.0.1, ::1 and localhost are allowed."
    )


def dial(
    address: str, security: ClientSecurity = ClientSecurity(), keepalive: Keepalive = KEEPALIVE
) -> grpc.aio.Channel:
    """A channel to a server; connects at the first call. Raises UnsafeAddressError, ValueError for no address."""
    host, port = split_address(address)
    _require_safe("dialling", host, security.encrypted, security.token)
    options = client_options(keepalive, proxy=not is_loopback(host))
    target = join_address(host, port)
    # The payload is entropy-coded already: compressing it again only costs time.
    if security.encrypted:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=security.ca, private_key=security.key, certificate_chain=security.certificate
        )
        return grpc.aio.secure_channel(target, credentials, options=options, compression=grpc.Compression.NoCompression)
    return grpc.aio.insecure_channel(target, options=options, compression=grpc.Compression.NoCompression)


def make_server(
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (), keepalive: Keepalive = KEEPALIVE
) -> grpc.aio.Server:
    """A server without ports; `bind` gives it one."""
    return grpc.aio.server(
        interceptors=list(interceptors),
        options=server_options(keepalive),
        compression=grpc.Compression.NoCompression,
    )


def is_free(host: str, port: int) -> bool:
    """Whether nobody listens on any address of a name (gRPC is content with one of them).

    Raises OSError where there is nothing left to find out with: no file descriptor, no memory.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return True  # gRPC says what is wrong with a name
    for family, kind, _, _, address in found:
        try:
            with socket.socket(family, kind) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
                tried.bind(address)
        except OSError as error:  # of another kind for an address family that this machine does not have
            if error.errno == errno.EADDRINUSE:
                return False
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
    return True


def bind(server: grpc.aio.Server, host: str, port: int, security: ServerSecurity = ServerSecurity()) -> int:
    """Gives a server its port (0: any free one) and returns it. Raises UnsafeAddressError, UnavailableError."""
    _require_safe("listening on", host, security.encrypted, security.token)
    target = join_address(host, port)
    try:
        if port and not is_free(host, port):  # 0: the system chooses a free one
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        if security.encrypted:
            bound = server.add_secure_port(target, _server_credentials(security))
        else:
            bound = server.add_insecure_port(target)
    except (RuntimeError, OSError) as error:
        raise UnavailableError(
            f"cannot listen on {target}: the port is taken, the address is not this machine's, or certificate and key "
            f"do not fit ({getattr(error, 'strerror', None) or error})",
            reason="CANNOT_LISTEN",
        ) from error
    return int(bound)


def _server_credentials(security: ServerSecurity) -> grpc.ServerCredentials:
    """Certificates that gRPC asks for again at each handshake."""

    def configured() -> grpc.ServerCertificateConfiguration:
        assert security.key is not None and security.certificate is not None, "they come together"
        return grpc.ssl_server_certificate_configuration(
            [(security.key, security.certificate)], root_certificates=security.client_ca
        )

    def renewed() -> grpc.ServerCertificateConfiguration | None:  # in one of gRPC's threads; None: nothing new
        nonlocal security
        if security.current is None or (now := security.current()) == security:
            return None
        security = replace(now, current=security.current)
        return configured()

    return grpc.dynamic_ssl_server_credentials(
        configured(),
        cast(Any, renewed),  # its types know no None
        require_client_authentication=security.client_ca is not None,
    )
