from __future__ import annotations

import fcntl
import os
import socket

import pytest

from device_client import meter as metering
from device_client.meter import Meter, Traffic, attach

linux = pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="the kernel's counters are Linux's")


@linux
async def test_counts_what_went_over_a_loopback_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        with socket.create_connection((host, port)) as here:
            there, _ = listener.accept()
            with there:
                meter = await attach(f"{host}:{port}")
                assert meter is not None
                assert meter.read() == Traffic()
                here.sendall(b"x" * 1000)
                assert len(there.recv(1000, socket.MSG_WAITALL)) == 1000
                there.sendall(b"y" * 10)
                assert len(here.recv(10, socket.MSG_WAITALL)) == 10
                assert meter.read() == Traffic(up=1000, down=10)
                meter.close()
                assert meter.read() == Traffic(up=1000, down=10), "the count outlives the socket"


@linux
async def test_two_connections_have_two_meters() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = "{}:{}".format(*listener.getsockname())
        with socket.create_connection(listener.getsockname()) as first:
            one = await attach(address)
            with socket.create_connection(listener.getsockname()) as second:
                two = await attach(address)
                assert one is not None and two is not None
                second.sendall(b"12")
                first.sendall(b"1")
                assert (one.read(), two.read()) == (Traffic(up=1), Traffic(up=2))
                assert await attach(address) is None, "every connection has a meter"
                one.close()
                two.close()


@linux
async def test_a_connection_that_an_earlier_session_left_is_not_taken() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as ours,
        listener.accept()[0] as there,
        socket.create_connection(listener.getsockname()) as left,  # of the two it has the later inode
    ):
        while metering._idle_ms(left) < 20:
            pass
        there.sendall(b"welcome")
        assert ours.recv(7, socket.MSG_WAITALL) == b"welcome"
        meter = await attach("{}:{}".format(*listener.getsockname()))
        assert meter is not None and meter.read() == Traffic(down=7)
        meter.close()


@linux
async def test_sockets_of_other_families_are_passed_over() -> None:
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),  # its peer is (0, 0)
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        meter = await attach("{}:{}".format(*listener.getsockname()))
        assert meter is not None
        meter.close()


@linux
async def test_this_machine_has_several_addresses() -> None:
    """GRPC resolves names on its own, and finds ::1 where the system says 127.0.0.1 alone."""
    with (
        socket.create_server(("127.0.0.2", 0)) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        meter = await attach(f"127.0.0.1:{listener.getsockname()[1]}")
        assert meter is not None
        meter.close()


@linux
async def test_the_socket_itself_is_left_as_it_was() -> None:
    """File status flags are shared between duplicates: a blocking socket would stop gRPC."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as here:
        here.setblocking(False)
        meter = Meter(here)
        assert fcntl.fcntl(here.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK
        meter.close()


async def test_nothing_there_is_none() -> None:
    assert await attach("127.0.0.1:1") is None
    with socket.socket(socket.AF_UNIX) as local:
        meter = Meter(local)
        assert meter.read() is None
        meter.close()
