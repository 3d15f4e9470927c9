"""The pictures that requests have shown, kept as packets, so that a picture which is sent again costs nothing.

    data URL ─ digest of its text ─┬─ known ─────────────────────────────────────────┐
    uuid ──────────────────────────┤                                                  ├─→ Picture
                                   └─ new: base64 ─ open, in a worker thread ─ keep ──┘

Promises that the same data URL, or the uuid that came with it, gives the same `Picture`, whose views are encoded once;
that several requests which show a new picture at one time open it once, unless all of them are given up; and that what
is kept is bounded. Leaves encoding and sending to the session.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from device_client.endpoint.errors import as_api_error, invalid
from device_client.endpoint.fetch import check_address, fetch
from device_client.endpoint.messages import Media
from device_client.picture import Picture
from tofc.errors import Error

T = TypeVar("T")
KEPT = 1024  # pictures
NAMES = 2 * KEPT
OPEN_AT_ONCE = 2  # decoding takes memory: three bytes a pixel
FETCH_AT_ONCE = 8  # waiting for another machine takes little


@dataclass(eq=False)
class _Opening:
    """A picture that is being opened, and how many requests wait for it."""

    task: asyncio.Task[Picture]
    waiting: int = 0


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
        self._names: OrderedDict[tuple[str, str], bytes] = OrderedDict()  # owner, uuid → digest; likewise
        self._opening: dict[bytes, _Opening] = {}
        self._slots = asyncio.Semaphore(OPEN_AT_ONCE)
        self._fetches = asyncio.Semaphore(FETCH_AT_ONCE)

    def __len__(self) -> int:
        return len(self._pictures)

    @property
    def nbytes(self) -> int:
        """Bytes of packets, and of pixels that were not encoded."""
        return sum(map(_weight, self._pictures.values()))

    async def get(self, media: Media, owner: str = "") -> tuple[Picture, bool]:
        """Return the picture, and whether it was known before. Raises ApiError. `owner`: whose names are meant."""
        if media.url is None:
            return self._named(media, owner), True
        key = await asyncio.to_thread(_digest, media.url)
        if media.uuid is not None:
            self._name((owner, media.uuid), key)
        if (known := self._pictures.get(key)) is not None:
            self._pictures.move_to_end(key)
            return known, True
        if key not in self._opening:
            self._opening[key] = opening = _Opening(asyncio.create_task(self._open(key, media)))
            opening.task.add_done_callback(lambda _: self._ended(key, opening))
        opening = self._opening[key]
        opening.waiting += 1
        try:
            return await asyncio.shield(opening.task), False  # another request may wait for it too
        except (Error, MemoryError) as error:
            raise as_api_error(error, media.path) from None
        finally:
            opening.waiting -= 1
            if not opening.waiting and not opening.task.done():
                opening.task.cancel()
                self._forget(key, opening)  # one that comes now opens it anew

    def trim(self) -> None:
        """Drop the least recently used pictures beyond the limits; call it when a request has ended."""
        size = self.nbytes
        while self._pictures and (size > self._kept_bytes or len(self._pictures) > KEPT):
            _, dropped = self._pictures.popitem(last=False)
            size -= _weight(dropped)

    def _name(self, name: tuple[str, str], key: bytes) -> None:
        self._names[name] = key
        self._names.move_to_end(name)
        if len(self._names) > NAMES:
            self._names.popitem(last=False)

    def _named(self, media: Media, owner: str) -> Picture:
        name = (owner, media.uuid or "")
        key = self._names.get(name)
        known = None if key is None else self._pictures.get(key)
        if key is None or known is None:
            raise invalid(
                media.path,
                f"{media.path} is null, and no picture with the uuid {media.uuid!r:.80} is kept; send it again with "
                "its data URL",
                code="picture_unknown",
            )
        self._names.move_to_end(name)
        self._pictures.move_to_end(key)
        return known

    async def _open(self, key: bytes, media: Media) -> Picture:
        url = media.url or ""
        fetched = url[:5].lower() != "data:"
        if fetched:
            async with self._fetches:
                data = await fetch(url, self._domains, self._picture_bytes, media.path)
        async with self._slots:
            if not fetched:
                data = await _in_thread(lambda: _decoded(url, media.path))
            picture = await _in_thread(lambda: self._open_picture(data))
        self._pictures[key] = picture
        return picture

    def _ended(self, key: bytes, opening: _Opening) -> None:
        self._forget(key, opening)
        if not opening.task.cancelled():
            opening.task.exception()  # seen, even if every request that waited for it has gone
        if not opening.waiting:
            self.trim()  # no request that waited for it will

    def _forget(self, key: bytes, opening: _Opening) -> None:
        if self._opening.get(key) is opening:
            del self._opening[key]

    def check(self, media: Sequence[Media]) -> None:
        """Raise ApiError for an address that is not allowed, before anything is opened."""
        for one in media:
            if one.url is not None and one.url[:5].lower() != "data:":
                check_address(one.url, self._domains, one.path)


async def _in_thread(work: Callable[[], T]) -> T:
    """Return the result of `work`; if it is cancelled, wait all the same: a thread cannot be, and takes memory."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        if not working.cancelled():
            working.exception()  # seen
        raise


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
    packets = sum(len(one.packet) + len(one.joined) for one in picture.packets)
    file = picture.file
    if file is None:
        return pixels + packets
    return packets + _weight(file) + (pixels if file.image is not picture.image else 0)  # they may share the pixels
