"""Addresses: HOST:PORT ⇄ (host, port), and which hosts are this machine.

Promises the same spelling for gRPC, options and messages. Leaves resolving names to gRPC.
"""

from __future__ import annotations

import ipaddress

from tofc.errors import UsageError

DEFAULT_PORT = 50061


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine and nothing else."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def split_address(address: str) -> tuple[str, int]:
    """Split 'HOST:PORT', '[IPV6]:PORT' or a bare host (then port 50061) into (host without brackets, port).

    Raises `UsageError`.

    >>> split_address("edge.example.org:5061"), split_address("[::1]")
    (('edge.example.org', 5061), ('::1', 50061))
    """
    host, separator, port = address.rpartition(":")
    if not separator or address.endswith("]"):
        host, port = address, str(DEFAULT_PORT)
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or (":" in host and not bracketed) or not port.isdecimal() or int(port) > 65535:
        raise UsageError(
            f"the address must be HOST:PORT with a port up to 65535, for instance 127.0.0.1:{DEFAULT_PORT}, "
            f"got {address!r}"
        )
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """Join (host, port) into the address that gRPC and `split_address` read."""
    host = host.strip("[]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
