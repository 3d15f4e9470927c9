"""Two network namespaces with a link between them that is as fast, as far and as lossy as a `LinkShape`. Needs root.

    namespace of the device ─ tun0 ─→ thread: rate, queue, half a round trip, loss ─→ tun0 ─ namespace of the server

Promises that packets are really lost and TCP has to find out, that a packet takes its bytes over the rate, and that one
seed gives one sequence of losses. The rate is here, not in tc's tbf, whose bucket lets at least a whole packet through
at once, 60 ms of a link of 25 KB/s. Leaves the programs in the namespaces to `link`.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from device_client.link_shape import LinkShape

DEVICE, EDGE = f"tofc-device-{os.getpid()}", f"tofc-edge-{os.getpid()}"  # names of the namespaces
DEVICE_IP, EDGE_IP = "10.77.0.1", "10.77.0.2"
QUEUE_S = 0.4  # a packet that would wait longer is dropped
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _CLONE_NEWNET = 0x400454CA, 0x0001, 0x1000, 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class TunRelay:
    """The link. `shape` may be set at any time."""

    def __init__(self, shape: LinkShape, *, seed: int = 0) -> None:
        self.shape = shape
        self.lost = 0  # packets
        self._random = random.Random(seed)
        self._ended = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link")

    def start(self) -> None:
        """Open both ends and carry packets from now on."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Stop carrying, close both ends."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        ends = [_open_tun(name) for name in (DEVICE, EDGE)]
        self._ready.set()
        free_at = [0.0, 0.0]  # by direction: from the device, from the server
        under_way: list[tuple[float, int, int, bytes]] = []  # (arrives at, number, to, packet)
        number = 0
        try:
            while not self._ended.is_set():
                wait_s = min(0.1, max(0.0, under_way[0][0] - time.monotonic())) if under_way else 0.1
                readable, _, _ = select.select(ends, [], [], wait_s)
                now = time.monotonic()
                for source in readable:
                    way = ends.index(source)
                    packet = os.read(source, 65_536)
                    rate = self.shape.down if way else self.shape.up
                    if free_at[way] - now > QUEUE_S or self._random.random() < self.shape.loss:
                        self.lost += 1
                        continue
                    free_at[way] = max(free_at[way], now) + len(packet) / rate
                    number += 1
                    heapq.heappush(under_way, (free_at[way] + self.shape.rtt_s / 2, number, ends[1 - way], packet))
                while under_way and under_way[0][0] <= now:
                    _, _, target, packet = heapq.heappop(under_way)
                    os.write(target, packet)
        finally:
            for end in ends:
                os.close(end)


@contextmanager
def namespaces(shape: LinkShape, *, seed: int = 0) -> Iterator[TunRelay]:
    """Make the namespaces and the link; remove them at the end."""
    for name in (DEVICE, EDGE):
        _ip("netns", "add", name)
    relay = TunRelay(shape, seed=seed)
    try:
        relay.start()
        for name, own, peer in ((DEVICE, DEVICE_IP, EDGE_IP), (EDGE, EDGE_IP, DEVICE_IP)):
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "addr", "add", own, "peer", peer, "dev", "tun0")
            _ip("-n", name, "link", "set", "tun0", "mtu", "1500", "up")
        yield relay
    finally:
        relay.stop()
        for name in (DEVICE, EDGE):
            _ip("netns", "del", name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _open_tun(namespace: str) -> int:
    """Open tun0 in a namespace, into which the calling thread moves."""
    with open(f"/run/netns/{namespace}", "rb") as there:
        if _libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
    end = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _IFF_TUN | _IFF_NO_PI))
    return end
