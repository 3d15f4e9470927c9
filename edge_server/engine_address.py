"""The addresses of engines, checked: who may read what a server sends there.

Whoever reaches an engine may ask it anything, and reads in its traffic the rows of every picture: its address must be
known to edge servers only. Promises that nothing goes unencrypted to another machine unless somebody has said that the
network between them is private. Leaves asking to `edge_server.engine.vllm_remote`.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from tofc.errors import SecurityError, UsageError
from tofc.rpc.address import is_loopback


def engine_urls(urls: Sequence[str], *, private_network: bool) -> tuple[str, ...]:
    """Return the addresses without a slash at the end. Raises UsageError, SecurityError (TLS_AND_TOKEN_REQUIRED).

    >>> engine_urls(["http://127.0.0.1:8000/"], private_network=False)
    ('http://127.0.0.1:8000',)
    """
    found = tuple(_checked(url, private_network) for url in urls)
    if repeated := [url for number, url in enumerate(found) if url in found[:number]]:
        raise UsageError(f"--engine-url {repeated[0]} is given twice; name each engine once")
    return found


def _checked(url: str, private_network: bool) -> str:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port  # the port is checked here: ValueError
    except ValueError:
        host = port = None
    if host is None or port == 0 or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise UsageError(f"--engine-url must be http://HOST:PORT or https://HOST:PORT, got {url!r}")
    if parts.username or parts.password:
        raise UsageError("--engine-url must not contain a password; give the API key with --engine-key-file")
    if parts.path.rstrip("/").endswith("/v1"):
        raise UsageError(f"--engine-url must be the engine's root, without /v1, got {url!r}")
    if parts.scheme == "http" and not is_loopback(host) and not private_network:
        raise SecurityError(
            f"--engine-url {url} is not encrypted: the network could read pictures' rows, answers and the key; use "
            "https://, or say with --engine-private-network that nobody else is on that network"
        )
    return url.rstrip("/")
