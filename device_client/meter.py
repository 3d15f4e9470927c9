"""What this process really put on the wire: the kernel's own count of a TCP connection's bytes.

Promises numbers with every header above TCP in them (HTTP/2, gRPC, TLS), and None instead of a guess where
the kernel has none (not Linux, a proxy or a Unix socket in between). Leaves TCP/IP headers out (about 40 bytes
a segment), and packets of other connections.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.rpc.channel import split_address

# struct tcp_info of Linux ≥ 4.19: RFC 4898's octet counters. Sent counts retransmissions too.
_HEARD_AT = 52
_RECEIVED_AT = 128
_SENT_AT = 200
_TCP_INFO_BYTES = 256
_FDS = Path("/proc/self/fd")
_claimed: set[int] = set()  # inodes of sockets that a meter of this process reads already


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes on the socket, seen from here."""

    up: int = 0
    down: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(up=self.up + other.up, down=self.down + other.down)

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(up=self.up - other.up, down=self.down - other.down)


class Meter:
    """Counts one connected socket. Holds a duplicate, so that the count outlives the connection.

    >>> import socket
    >>> with socket.create_server(("127.0.0.1", 0)) as listener:
    ...     there = socket.create_connection(listener.getsockname())
    ...     meter = Meter(there)
    ...     there.sendall(b"12345")
    ...     traffic = meter.read()
    ...     meter.close(), there.close()
    (None, None)
    >>> traffic is None or traffic.up == 5
    True
    """

    def __init__(self, connected: socket.socket, inode: int | None = None) -> None:
        self._socket = _duplicate(connected.fileno())
        self._inode = inode
        self._last: Traffic | None = None
        if inode is not None:
            _claimed.add(inode)

    def read(self) -> Traffic | None:
        """Bytes so far, since the connection was made; after `close` the last count."""
        if self._socket.fileno() >= 0:
            self._last = tcp_bytes(self._socket)
        return self._last

    def close(self) -> None:
        """Keep the last count and let the socket go."""
        self.read()
        self._socket.close()
        if self._inode is not None:
            _claimed.discard(self._inode)


def tcp_bytes(connected: socket.socket) -> Traffic | None:
    """The kernel's count of a socket; None where it has none."""
    if not hasattr(socket, "TCP_INFO"):
        return None
    try:
        info = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return None
    if len(info) < _SENT_AT + 8:
        return None
    (received,) = struct.unpack_from("<Q", info, _RECEIVED_AT)
    (sent,) = struct.unpack_from("<Q", info, _SENT_AT)
    return Traffic(up=sent, down=received)


async def attach(address: str) -> Meter | None:
    """The meter of the socket of this process that last heard from ``address`` and has none yet.

    gRPC does not tell its sockets, so they are looked for among the process's own; those of sessions that ended stay
    connected for a while, and a later socket need not have a higher inode. Of several connections
    that are opened to one server at the same moment, which is whose is not known; their sum is right.
    """
    host, port = split_address(address)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return None
    wanted = {(_plain(entry[4][0]), port) for entry in found}
    best: tuple[int, int, socket.socket] | None = None
    for inode, candidate in _sockets():
        try:
            peer = candidate.getpeername()
        except OSError:
            peer = None
        internet = candidate.family in (socket.AF_INET, socket.AF_INET6)  # others name their peers differently
        fits = internet and peer is not None and (_plain(peer[0]), peer[1]) in wanted and inode not in _claimed
        heard = _heard_ago(candidate) if fits else 0
        if fits and (best is None or (-heard, inode) > best[:2]):
            if best is not None:
                best[2].close()
            best = (-heard, inode, candidate)
        else:
            candidate.close()
    if best is None:
        return None
    _, inode, newest = best
    with newest:
        return Meter(newest, inode) if tcp_bytes(newest) is not None else None


def _heard_ago(connected: socket.socket) -> int:
    """Milliseconds since a socket received data; 0 where nobody knows."""
    try:
        info = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        return int(struct.unpack_from("<I", info, _HEARD_AT)[0])
    except (AttributeError, OSError, struct.error):
        return 0


def _sockets() -> Iterator[tuple[int, socket.socket]]:
    """Inode and a duplicate of every socket of this process; the caller closes the duplicates."""
    try:
        entries = sorted(_FDS.iterdir())
    except OSError:
        return
    for entry in entries:
        try:
            kind, _, inode = os.readlink(entry).partition(":[")
            if kind == "socket":
                yield int(inode.rstrip("]")), _duplicate(int(entry.name))
        except OSError:
            continue  # closed meanwhile


def _duplicate(fd: int) -> socket.socket:
    """Not by ``socket.dup()``: that sets its copy to blocking, and the flag is one for all copies: gRPC would hang."""
    return socket.socket(fileno=os.dup(fd))


def _plain(address: object) -> str:
    """An IP address in one spelling: gRPC dials IPv4 through dual-stack sockets (::ffff:127.0.0.1).

    It also resolves names itself, and finds ::1 where the system says 127.0.0.1 alone: all of loopback is one.
    """
    ip = ipaddress.ip_address(str(address).partition("%")[0])
    plain = (ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None) or ip
    return "loopback" if plain.is_loopback else str(plain)
