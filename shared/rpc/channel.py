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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from shared.rpc.errors import UnavailableError, UnsafeAddressError
from shared.text import read_lines, stripped

UP_BYTES = 256 * 1024  # largest message to the server: a packet is a few hundred bytes
DOWN_BYTES = 1024 * 1024  # largest message to the device
CHUNK_BYTES = 32 * 1024  # of an image file in one message: small enough that a cancel soon gets its turn
DEFAULT_PORT = 50061
CONNECT_S = 30.0  # until a server has answered for the first time: TLS takes 18 s at 300 B/s and a second of round trip
LEAST_TOKEN = 16  # characters; a guessable token is none

# What a server may send of an answer before the device has read what came. A narrow link carries it in seconds, else
# the replies to pings would wait behind it, and the link count as lost; text needs no more.
# (A connection's window is 65 535 bytes whatever one asks for. gRPC fills it up to what was asked for, 13 bytes each
# time it writes; asked for less, it does so only once the difference is used up.)
ANSWER_WINDOW = 2 * 1024

Options = list[tuple[str, int | str]]
Metadata = tuple[tuple[str, str], ...]

SPARING: Options = [
    ("grpc.http2.bdp_probe", 0),  # 17 bytes after most messages, to find a window that packets never need
    ("grpc.compression_enabled_algorithms_bitset", 1),  # none: else both sides name those that they know
    ("grpc.http2.true_binary", 0),  # a setting for binary metadata, of which there is none
]


@dataclass(frozen=True, kw_only=True)
class Keepalive:
    """Pings that find out about a link that died silently, as mobile links do. Milliseconds."""

    client_every: int = 20_000
    server_every: int = 30_000
    timeout: int = 10_000
    permitted_every: int = 10_000  # a server cuts a client that pings more often

    def __post_init__(self) -> None:
        if self.client_every < self.permitted_every:
            raise ValueError(
                f"keepalive every {self.client_every} ms is more often than the {self.permitted_every} ms "
                "that the server permits; raise client_every or lower permitted_every"
            )


KEEPALIVE = Keepalive()


@dataclass(frozen=True, kw_only=True)
class ClientSecurity:
    """What a device shows and trusts. `ca` (PEM) implies TLS; TLS without `ca` trusts the system's authorities."""

    tls: bool = False
    ca: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    @property
    def encrypted(self) -> bool:
        return self.tls or self.ca is not None

    @property
    def metadata(self) -> Metadata:
        """To pass with every call: `stub.Session(metadata=security.metadata)`."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


@dataclass(frozen=True, kw_only=True)
class ServerSecurity:
    """What a server shows and asks for. Certificate chain and key are PEM and come together."""

    certificate: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            missing = "key" if self.key is None else "certificate"
            raise UnsafeAddressError(f"TLS is half configured: the {missing} is missing; give certificate and key")

    @property
    def encrypted(self) -> bool:
        return self.certificate is not None


def read_token(path: Path) -> str:
    """The token in a file: one line of at least 16 visible ASCII characters. Raises UnsafeAddressError, ValueError."""
    token = stripped("\n".join(read_lines(path)))
    if len(token) < LEAST_TOKEN or not all("!" <= character <= "~" for character in token):
        raise UnsafeAddressError(
            f"{path} holds {len(token)} characters; a token is one line of at least {LEAST_TOKEN} visible ASCII "
            "characters without spaces, for instance from: openssl rand -hex 32",
            reason="TOKEN_UNUSABLE",
        )
    return token


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
        ("grpc.keepalive_time_ms", keepalive.client_every),
        ("grpc.keepalive_timeout_ms", keepalive.timeout),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        *SPARING,
        ("grpc.http2.lookahead_bytes", ANSWER_WINDOW),
        (
            "grpc.use_local_subchannel_pool",
            1,
        ),  # a connection a channel: else those of a process share one, and its limits
        ("grpc.enable_http_proxy", int(proxy)),
        ("grpc.min_reconnect_backoff_ms", int(CONNECT_S * 1e3) + 10_000),  # one try may take as long; by itself 20 s
        ("grpc.service_config", json.dumps({"methodConfig": [retried]})),
    ]


def server_options(keepalive: Keepalive = KEEPALIVE) -> Options:
    """Options of a server."""
    return [
        ("grpc.max_send_message_length", DOWN_BYTES),
        ("grpc.max_receive_message_length", UP_BYTES),
        ("grpc.keepalive_time_ms", keepalive.server_every),
        ("grpc.keepalive_timeout_ms", keepalive.timeout),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
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
        credentials = grpc.ssl_channel_credentials(root_certificates=security.ca)
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
        if security.certificate is not None and security.key is not None:
            credentials = grpc.ssl_server_credentials([(security.key, security.certificate)])
            bound = server.add_secure_port(target, credentials)
        else:
            bound = server.add_insecure_port(target)
    except (RuntimeError, OSError) as error:
        raise UnavailableError(
            f"cannot listen on {target}: the port is taken, the address is not this machine's, or certificate and key "
            f"do not fit ({getattr(error, 'strerror', None) or error})",
            reason="CANNOT_LISTEN",
        ) from error
    return int(bound)
