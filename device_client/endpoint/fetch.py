"""Pictures by address, from the domains that the operator allows; by default from none.

Promises that no other address is contacted, redirects included, that a file is never read, and that a picture which is
too large or too slow is given up. Leaves what the bytes are to `pictures`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from urllib.parse import urlsplit

from device_client.endpoint.errors import ApiError, invalid
from tofc.errors import UsageError

TIMEOUT_S = 20.0
SHOWN = 100  # characters of an address in a message


def check_domains(domains: Sequence[str]) -> tuple[str, ...]:
    """Return domains in lower case. Raises UsageError for what is not one."""
    for domain in domains:
        if not domain or any(character in domain for character in "/:@ *"):
            raise UsageError(f"--allow-domain must be a name such as example.org, got {domain!r}")
    return tuple(domain.lower().strip(".") for domain in domains)


def check_address(url: str, domains: Sequence[str], path: str) -> None:
    """Raise ApiError unless `url` is https or http, and its host is one of `domains` or below one."""
    try:
        parts = urlsplit(url)
        scheme, host, _ = parts.scheme.lower(), (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        scheme, host = "", ""
    if scheme not in ("http", "https") or not host:
        raise invalid(path, f"{path} must be a data URL (data:image/jpeg;base64,…), got {url[:SHOWN]!r}")
    if not any(host == domain or host.endswith(f".{domain}") for domain in domains):
        raise invalid(
            path,
            f"{path} is an address at {host}, which this endpoint does not fetch from; send the picture as a data URL, "
            f"or start the endpoint with --allow-domain {host}",
            code="url_not_allowed",
        )


async def fetch(url: str, domains: Sequence[str], most_bytes: int, path: str) -> bytes:
    """Return the bytes at an allowed address. Raises ApiError."""
    check_address(url, domains, path)
    import httpx2  # not needed without such addresses

    data = bytearray()
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            httpx2.AsyncClient(follow_redirects=False, timeout=TIMEOUT_S) as client,
            client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as response,
        ):
            if response.status_code != 200:
                raise invalid(path, f"{path}: {url[:SHOWN]} answered {response.status_code}, expected 200")
            if (encoding := response.headers.get("content-encoding", "identity").lower()) != "identity":
                raise invalid(path, f"{path}: {url[:SHOWN]} is sent as {encoding[:40]!r}, which was not asked for")
            async for piece in response.aiter_raw():  # never unpacked: that could take any memory
                data += piece
                if len(data) > most_bytes:
                    raise ApiError(
                        413, "picture_too_large", f"{path}: the file is larger than {most_bytes} bytes", param=path
                    )
    except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, ValueError) as error:  # of names that IDNA cannot write
        raise invalid(path, f"{path}: {url[:SHOWN]} could not be fetched ({type(error).__name__})") from None
    return bytes(data)
