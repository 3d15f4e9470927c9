"""The pictures that requests have shown, kept as packets, so that a picture which is sent again costs nothing.

    data URL ─ digest of its text ─┬─ known ─────────────────────────────────────────┐
    uuid ──────────────────────────┤                                                  ├─→ Picture
                                   └─ new: base64 ─ open, in a worker thread ─ keep ──┘

Promises that the same data URL, or the uuid that came with it, gives the same `Picture`, whose views are encoded once;
that several requests which show a new picture at one time open it once; and that what is kept is bounded. Leaves
encoding and sending to the session.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

from device_client.endpoint.errors import as_api_error, invalid
from device_client.endpoint.fetch import check_address, fetch
from device_client.endpoint.messages import Media
from device_client.picture import Picture
from tofc.errors import Error

KEPT = 1024  # pictures
OPEN_AT_ONCE = 2  # decoding takes memory: three bytes a pixel


class KeptPictures:
    """Pictures by the digest of what the client sent, and by the client's names for them (uuid)."""

    def __init__(
        self,
        open_picture: Callable[[bytes], Picture],
        *,
        kept_bytes: int,
        picture_bytes: int,
        domains: Sequence[str] = (),
    ) -> None:
        """`kept_bytes`: most bytes of packets and pixels; `picture_bytes`: of one file; `domains`: to fetch from."""
        self._open_picture = open_picture
        self._kept_bytes = kept_bytes
        self._picture_bytes = picture_bytes
        self._domains = domains
        self._pictures: OrderedDict[bytes, Picture] = OrderedDict()  # least recently used first
        self._names: dict[str, bytes] = {}  # uuid → digest
        self._opening: dict[bytes, asyncio.Task[Picture]] = {}
        self._slots = asyncio.Semaphore(OPEN_AT_ONCE)

    def __len__(self) -> int:
        return len(self._pictures)

    @property
    def nbytes(self) -> int:
        """Bytes of packets, and of pixels that were not encoded."""
        return sum(map(_weight, self._pictures.values()))

    async def get(self, media: Media) -> tuple[Picture, bool]:
        """Return the picture, and whether it was known before. Raises ApiError."""
        if media.url is None:
            return self._named(media), True
        key = await asyncio.to_thread(_digest, media.url)
        if media.uuid is not None:
            self._names[media.uuid] = key
        if (known := self._pictures.get(key)) is not None:
            self._pictures.move_to_end(key)
            return known, True
        if key not in self._opening:
            self._opening[key] = asyncio.create_task(self._open(key, media))
            self._opening[key].add_done_callback(lambda task: self._opened(key, task))
        try:
            return await asyncio.shield(self._opening[key]), False  # another request may wait for it too
        except (Error, MemoryError) as error:
            raise as_api_error(error, media.path) from None

    def trim(self) -> None:
        """Drop the least recently used pictures beyond the limits; call it when a request has ended."""
        size = self.nbytes
        while self._pictures and (size > self._kept_bytes or len(self._pictures) > KEPT):
            _, dropped = self._pictures.popitem(last=False)
            size -= _weight(dropped)
        if len(self._names) > 2 * KEPT:
            self._names = {name: key for name, key in self._names.items() if key in self._pictures}

    def _named(self, media: Media) -> Picture:
        key = self._names.get(media.uuid or "")
        known = None if key is None else self._pictures.get(key)
        if key is None or known is None:
            raise invalid(
                media.path,
                f"{media.path} is null, and no picture with the uuid {media.uuid!r:.80} is kept; send it again with "
                "its data URL",
                code="picture_unknown",
            )
        self._pictures.move_to_end(key)
        return known

    async def _open(self, key: bytes, media: Media) -> Picture:
        url = media.url or ""
        async with self._slots:
            if url[:5].lower() == "data:":
                data = await asyncio.to_thread(_decoded, url, media.path)
            else:
                data = await fetch(url, self._domains, self._picture_bytes, media.path)
            picture = await asyncio.to_thread(self._open_picture, data)
        self._pictures[key] = picture
        return picture

    def _opened(self, key: bytes, task: asyncio.Task[Picture]) -> None:
        self._opening.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen, even if every request that waited for it has gone

    def check(self, media: Sequence[Media]) -> None:
        """Raise ApiError for an address that is not allowed, before anything is opened."""
        for one in media:
            if one.url is not None and one.url[:5].lower() != "data:":
                check_address(one.url, self._domains, one.path)


def _digest(url: str) -> bytes:
    return hashlib.blake2b(url.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _decoded(url: str, path: str) -> bytes:
    """Return the bytes of a data URL. Raises ApiError."""
    head, comma, text = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise invalid(path, f"{path} must be data:image/…;base64,…, got {head[:60]!r}", code="invalid_image")
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(path, f"{path} is not base64 ({error})", code="invalid_image") from None
    if not data:
        raise invalid(path, f"{path} has no bytes; send a picture", code="invalid_image")
    return data


def _weight(picture: Picture) -> int:
    pixels = 0 if picture.image is None else 3 * picture.image.width * picture.image.height
    return pixels + sum(len(one.packet) + len(one.joined) for one in picture.packets)
