"""Channels and servers, with every gRPC option that is used.

Promises that both sides agree on message sizes and keepalive. Leaves who may talk without TLS to `security`, the check
of tokens to `auth`.

gRPC silently ignores option names that it does not know, so no other module writes any.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import grpc
import grpc.aio

from tofc.errors import UnavailableError, UsageError
from tofc.rpc.address import is_loopback, join_address, split_address
from tofc.rpc.security import PLAIN_CLIENT, PLAIN_SERVER, ClientSecurity, ServerSecurity, require_safe

MAX_UP_BYTES = 256 * 1024  # largest message to the server: a packet is a few hundred bytes
MAX_DOWN_BYTES = 1024 * 1024  # largest message to the device
CHUNK_BYTES = 32 * 1024  # of an image file in one message: small, so that a cancellation does not wait long
CONNECT_TIMEOUT_S = 30.0  # until the first reply: with TLS it takes 18 s at 300 B/s and 1 s of round trip

# How much of an answer a server may send before the device has read it. A narrow link carries this in seconds; with
# more, replies to pings would wait behind it and the link would count as lost. Text needs no more.
# (A connection's window is at least 65 535 bytes. gRPC refills it up to the size requested, which costs 13 bytes each
# time it writes; if less is requested, it refills only once the difference is used up.)
ANSWER_WINDOW_BYTES = 2 * 1024
UPLOAD_WINDOW_BYTES = 32 * 1024  # of a connection to the server; image files need one, packets do not

_KERNEL_FACTOR = 3  # the kernel's timeout in units of the ping timeout

Options = list[tuple[str, int | str]]

_NARROW_LINK: Options = [
    ("grpc.http2.bdp_probe", 0),  # costs 17 bytes after most messages; packets need no larger window
    ("grpc.compression_enabled_algorithms_bitset", 1),  # none: otherwise both sides send lists of algorithms
    ("grpc.http2.true_binary", 0),  # otherwise both sides send a setting for binary metadata, which is not used
]


@dataclass(frozen=True, kw_only=True)
class Keepalive:
    """Pings that detect a link which died silently, as mobile links do.

    A dead link is detected `client_interval_ms` (or `server_interval_ms`) plus `timeout_ms` after the last data. Raises
    `UsageError` if clients would ping more often than the server allows.
    """

    client_interval_ms: int = 20_000
    """A client pings after this long without data from the server."""
    server_interval_ms: int = 22_000
    """A server pings after this long without data; a little later than clients, so that only they ping."""
    timeout_ms: int = 10_000
    """Time for the reply to a ping."""
    min_interval_ms: int = 10_000
    """A server disconnects a client that pings more often."""

    def __post_init__(self) -> None:
        if self.client_interval_ms < self.min_interval_ms:
            raise UsageError(
                f"client_interval_ms must be at least min_interval_ms ({self.min_interval_ms}), or servers disconnect "
                f"the client; got {self.client_interval_ms}"
            )

    def options(self, interval_ms: int) -> Options:
        """Return gRPC options of a side that pings after `interval_ms` without data."""
        return [
            ("grpc.keepalive_time_ms", interval_ms),
            # The time for the reply to a ping. gRPC does not start its keepalive timeout for this (its PR 39239), but
            # it does start this one, 60 s by default.
            ("grpc.http2.ping_timeout_ms", self.timeout_ms),
            # TCP_USER_TIMEOUT of the kernel: how long sent data may stay unacknowledged, for instance while a question
            # of many kilobytes passes a slow link.
            ("grpc.keepalive_timeout_ms", _KERNEL_FACTOR * self.timeout_ms),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]


DEFAULT_KEEPALIVE = Keepalive()


def client_options(keepalive: Keepalive = DEFAULT_KEEPALIVE, *, proxy: bool = True) -> Options:
    """Return the options of a device's channel; with `proxy` False it ignores the environment's HTTP proxy."""
    retried_calls = {
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
        ("grpc.max_send_message_length", MAX_UP_BYTES),
        ("grpc.max_receive_message_length", MAX_DOWN_BYTES),
        *keepalive.options(keepalive.client_interval_ms),
        *_NARROW_LINK,
        ("grpc.http2.lookahead_bytes", ANSWER_WINDOW_BYTES),
        # One connection for each channel: otherwise all channels of a process share one, and its limits.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", int(proxy)),
        # How long one attempt to connect may take, 20 s by default.
        ("grpc.min_reconnect_backoff_ms", int(CONNECT_TIMEOUT_S * 1e3) + 10_000),
        ("grpc.service_config", json.dumps({"methodConfig": [retried_calls]})),
    ]


def server_options(keepalive: Keepalive = DEFAULT_KEEPALIVE) -> Options:
    """Return the options of a server."""
    return [
        ("grpc.max_send_message_length", MAX_DOWN_BYTES),
        ("grpc.max_receive_message_length", MAX_UP_BYTES),
        *keepalive.options(keepalive.server_interval_ms),
        *_NARROW_LINK,
        # The widely copied spelling with `recv` in it is ignored, and clients that ping are then disconnected.
        ("grpc.http2.min_ping_interval_without_data_ms", keepalive.min_interval_ms),
        # Below the size of a new connection's window, so that its first 32 KiB cost no updates of it.
        ("grpc.http2.lookahead_bytes", UPLOAD_WINDOW_BYTES),
        # A device has one session on its connection. Headers, which may expand 3 000 : 1, take memory for each stream.
        ("grpc.max_concurrent_streams", 8),
        ("grpc.so_reuseport", 0),  # a second server on the same port must fail, not share the calls
    ]


def dial(
    address: str, security: ClientSecurity = PLAIN_CLIENT, keepalive: Keepalive = DEFAULT_KEEPALIVE, *, via: str = ""
) -> grpc.aio.Channel:
    """Open a channel to a server; it connects at the first call. Raises `UsageError`, `SecurityError`.

    `via`: HOST:PORT of a relay on the way, which passes bytes on; a certificate must still have the server's name.
    """
    host, port = split_address(address)
    require_safe("dialling", host, security.encrypted, security.token)
    options = client_options(keepalive, proxy=not (via or is_loopback(host)))
    target = via or join_address(host, port)
    if via:
        options.append(("grpc.ssl_target_name_override", host))
    # The payload is entropy-coded already: compressing it again only costs time.
    if security.encrypted:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=security.ca, private_key=security.key, certificate_chain=security.certificate
        )
        return grpc.aio.secure_channel(target, credentials, options=options, compression=grpc.Compression.NoCompression)
    return grpc.aio.insecure_channel(target, options=options, compression=grpc.Compression.NoCompression)


def make_server(
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (), keepalive: Keepalive = DEFAULT_KEEPALIVE
) -> grpc.aio.Server:
    """Create a server without ports; `bind` adds one."""
    return grpc.aio.server(
        interceptors=list(interceptors),
        options=server_options(keepalive),
        compression=grpc.Compression.NoCompression,
    )


def is_port_free(host: str, port: int) -> bool:
    """Say whether no program listens on any address of a host; gRPC itself only needs one of them to be free.

    Raises OSError if there are not enough file descriptors or memory to find out.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return True  # gRPC reports what is wrong with a name
    for family, kind, _, _, address in found:
        try:
            with socket.socket(family, kind) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
                tried.bind(address)
        except OSError as error:  # other errors: an address family that this machine lacks
            if error.errno == errno.EADDRINUSE:
                return False
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
    return True


def bind(server: grpc.aio.Server, host: str, port: int, security: ServerSecurity = PLAIN_SERVER) -> int:
    """Add a port to a server (0: any free one) and return it. Raises `SecurityError`, `UnavailableError`."""
    require_safe("listening on", host, security.encrypted, security.token)
    target = join_address(host, port)
    try:
        if port and not is_port_free(host, port):  # 0: the system chooses a free port
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
    """Return credentials whose certificates gRPC requests again at each handshake."""

    def configured() -> grpc.ServerCertificateConfiguration:
        assert security.key is not None and security.certificate is not None, "they come together"
        return grpc.ssl_server_certificate_configuration(
            [(security.key, security.certificate)], root_certificates=security.client_ca
        )

    def renewed() -> grpc.ServerCertificateConfiguration | None:  # called in gRPC's threads; None: unchanged
        nonlocal security
        if security.current is None or (now := security.current()) == security:
            return None
        security = replace(now, current=security.current)
        return configured()

    return grpc.dynamic_ssl_server_credentials(
        configured(),
        cast(Any, renewed),  # its type annotation in gRPC lacks None
        require_client_authentication=security.client_ca is not None,
    )
