"""The bytes that a connection really took: the kernel's own count for a TCP socket.

Promises numbers that include every header above TCP (HTTP/2, gRPC, TLS), and None instead of a guess where the kernel
has no count (not Linux, a proxy or a Unix socket in between). TCP/IP headers (about 40 bytes a segment) and other
connections are not counted.
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

from tofc.rpc.address import split_address

# struct tcp_info of Linux ≥ 4.19: RFC 4898's octet counters. Sent counts retransmissions too.
_LAST_RECEIVED_AT = 52
_RECEIVED_AT = 128
_SENT_AT = 200
_TCP_INFO_BYTES = 256
_FDS = Path("/proc/self/fd")
_claimed: set[int] = set()  # inodes of sockets that have a meter in this process


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes on a socket: `up` from this side, `down` to it."""

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
        """Return the bytes since the connection was made; after `close` the last count."""
        if self._socket.fileno() >= 0:
            self._last = tcp_bytes(self._socket)
        return self._last

    def close(self) -> None:
        """Keep the last count and close the duplicate."""
        self.read()
        self._socket.close()
        if self._inode is not None:
            _claimed.discard(self._inode)


def tcp_bytes(connected: socket.socket) -> Traffic | None:
    """Return the kernel's count of a socket; None where it has none."""
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
    """Return a meter for the socket of this process that last received data from `address` and has no meter yet.

    gRPC does not expose its sockets, so they are looked up among the process's own. The last to receive data is taken:
    sockets of sessions that ended stay connected for a while, and the newest may not have the highest inode. If several
    connections to one server are opened at the same moment, their meters may be swapped; the sum is right.
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
        internet = candidate.family in (socket.AF_INET, socket.AF_INET6)  # other families have other peer names
        fits = internet and peer is not None and (_plain(peer[0]), peer[1]) in wanted and inode not in _claimed
        idle_ms = _idle_ms(candidate) if fits else 0
        if fits and (best is None or (-idle_ms, inode) > best[:2]):
            if best is not None:
                best[2].close()
            best = (-idle_ms, inode, candidate)
        else:
            candidate.close()
    if best is None:
        return None
    _, inode, newest = best
    with newest:
        return Meter(newest, inode) if tcp_bytes(newest) is not None else None


def _idle_ms(connected: socket.socket) -> int:
    """Return the milliseconds since a socket received data; 0 where that is not known."""
    try:
        info = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        return int(struct.unpack_from("<I", info, _LAST_RECEIVED_AT)[0])
    except (AttributeError, OSError, struct.error):
        return 0


def _sockets() -> Iterator[tuple[int, socket.socket]]:
    """Yield the inode and a duplicate of every socket of this process; the caller closes the duplicates."""
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
    """Duplicate a socket. Not by `socket.dup()`: it sets the shared file status to blocking, and gRPC would hang."""
    return socket.socket(fileno=os.dup(fd))


def _plain(address: object) -> str:
    """Return an IP address in one spelling: gRPC dials IPv4 through dual-stack sockets (::ffff:127.0.0.1).

    gRPC also resolves names itself, and finds ::1 where the system says 127.0.0.1 only: all of loopback is equal.
    """
    ip = ipaddress.ip_address(str(address).partition("%")[0])
    plain = (ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None) or ip
    return "loopback" if plain.is_loopback else str(plain)
