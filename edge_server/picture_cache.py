"""Pictures that the server holds: decoded, projected, bounded in bytes, shared by all sessions.

Promises that memory stays within its limit, that a picture which a question uses is not evicted, and that a picture is
complete exactly when all its views are present. What arrived of a picture before its session ended is kept until others
need the memory, so that the device can continue it; nothing is kept of a session that broke the protocol. Leaves
decoding to `assemble` and `image_decoding`, announcements to sessions. Everything here runs in the event loop's thread.

A picture is identified by a hash from the device, which a server cannot check: every client that may open a session (it
needs a token) is trusted not to announce one picture under the hash of another. The hash covers the device's codec, so
one cache serves sessions of several codecs. It is made with the cache's key, which only sessions receive
(`tofc.rpc.picture_id`).
"""

from __future__ import annotations

import asyncio
import itertools
import math
import secrets
import time
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tofc.errors import LimitError, MismatchError
from tofc.rpc.picture_id import KEY_BYTES

OVERHEAD_BYTES = 2048  # counted for a picture in addition to its rows


@dataclass(kw_only=True, eq=False)
class PartialFile:
    """The part of a picture's image file that has arrived."""

    total: int  # bytes of the whole file
    data: bytearray = field(default_factory=bytearray)
    crc32: int = 0

    def add(self, data: bytes) -> None:
        """Append the next bytes."""
        self.data += data
        self.crc32 = zlib.crc32(data, self.crc32)


class HeldPicture:
    """The views of one picture in prompt order: crops row by row, the global view last."""

    def __init__(self, picture_id: bytes, rows: int, columns: int) -> None:
        self.picture_id = picture_id
        self.rows = rows
        self.columns = columns
        self.decode_ms = 0.0
        self.decoded_s = (math.inf, 0.0)  # from when to when its views were decoded, of time.perf_counter
        self.size_bytes = OVERHEAD_BYTES
        self.uploaders = 0  # sessions that announced it and may still send it
        self.questions = 0  # that wait for it or use it
        self.pending_decodes = 0  # its image files that have arrived completely and are not decoded yet
        self.arriving: list[PartialFile] = []  # from open sessions; their memory is not part of `size_bytes`
        self.kept_file: PartialFile | None = None  # from a session that ended; part of `size_bytes`
        self._views: list[NDArray[np.float32] | None] = [None] * (rows * columns + 1)
        self._missing = len(self._views)
        self._settled = asyncio.Event()  # complete, or failed with `_error`
        self._more = asyncio.Event()  # another view is there, or settled; replaced by a new one each time
        self._error: LimitError | None = None

    @property
    def count(self) -> int:
        """How many views the picture has, the global one included."""
        return len(self._views)

    @property
    def complete(self) -> bool:
        """Whether all views are present."""
        return self._missing == 0

    @property
    def missing(self) -> int:
        """How many views have not arrived yet."""
        return self._missing

    @property
    def views(self) -> list[NDArray[np.float32]]:
        """Rows [n, H] of every view of a complete picture."""
        return [view for view in self._views if view is not None]

    @property
    def leading_views(self) -> list[NDArray[np.float32]]:
        """Rows [n, H] of the views before the first one that is missing."""
        return [view for view in itertools.takewhile(lambda view: view is not None, self._views) if view is not None]

    @property
    def view_indexes(self) -> list[int]:
        """Indexes of the views that are present."""
        return [index for index, view in enumerate(self._views) if view is not None]

    @property
    def longest_file(self) -> PartialFile | None:
        """The longest part of its image file that the server has, from any session."""
        files = [*self.arriving, *([self.kept_file] if self.kept_file else [])]
        return max(files, key=lambda file: len(file.data), default=None)

    @property
    def evictable(self) -> bool:
        """Whether nobody needs it: no question, and no session that may still complete it."""
        return not self.questions and (self.complete or not self.uploaders)

    def has(self, index: int) -> bool:
        """Say whether this view is present."""
        return self._views[index] is not None

    async def wait(self) -> None:
        """Wait until every view is present. Raises LimitError if that cannot happen: see `PictureCache.fail`."""
        await self._settled.wait()
        if self._error is not None:
            raise LimitError(
                self._error.message, reason=self._error.reason
            )  # one for each waiter, as it gets a traceback

    async def wait_for_more(self) -> None:
        """Wait until another view is there. Raises as `wait`, and returns at once for a complete picture."""
        more = self._more
        if not self._settled.is_set():
            await more.wait()
        if self._settled.is_set():
            await self.wait()

    def _tell(self) -> None:
        """Wake those that wait for another view."""
        self._more.set()
        self._more = asyncio.Event()

    def _fill(self, index: int, view: NDArray[np.float32], decode_ms: float) -> None:
        self._views[index] = view
        self._missing -= 1
        self.size_bytes += view.nbytes
        self.decode_ms += decode_ms
        now_s = time.perf_counter()
        self.decoded_s = min(self.decoded_s[0], now_s - decode_ms / 1e3), now_s
        if self.complete:
            self._settled.set()
        self._tell()


class PictureCache:
    """Evicts the least recently used pictures first; also incomplete ones that no session sends any more."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.key = secrets.token_bytes(KEY_BYTES.start)  # for the hashes that devices announce as picture ids
        self.size_bytes = 0
        self.hits = self.misses = self.evictions = 0  # pictures of questions; pictures dropped for others
        self._pictures: OrderedDict[bytes, HeldPicture] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._pictures)

    def get(self, picture_id: bytes, layout: tuple[int, int] | None = None) -> HeldPicture | None:
        """Return the picture and mark it as used; None if it is not held, or not with this layout (rows, columns).

        Under the same id, another session may have announced another layout, which views of this one do not fit.
        """
        picture = self._pictures.get(picture_id)
        if picture is None or layout not in (None, (picture.rows, picture.columns)):
            return None
        self._pictures.move_to_end(picture_id)
        return picture

    def open(self, picture_id: bytes, rows: int, columns: int) -> HeldPicture:
        """Return the picture held under this id, or a new one without views.

        Raises MismatchError when it is held with another layout, LimitError when there is no memory.
        """
        if (held := self.get(picture_id, (rows, columns))) is not None:
            return held
        other = self._pictures.get(picture_id)
        if other is not None and other.evictable and not other.complete:  # its views do not fit the new layout
            self._drop(other)
        elif other is not None:
            raise MismatchError(
                f"picture {picture_id.hex()} is known with {other.rows} x {other.columns} crops, now it is "
                f"announced with {rows} x {columns}; give each picture and layout its own id",
                reason="LAYOUT_MISMATCH",
            )
        picture = HeldPicture(picture_id, rows, columns)
        self._evict_for(picture.size_bytes)
        self._pictures[picture_id] = picture
        self.size_bytes += picture.size_bytes
        return picture

    def put(self, picture: HeldPicture, index: int, view: NDArray[np.float32], decode_ms: float) -> None:
        """Add a view [n, H] to a held picture; do nothing if the view is present, or the picture is no longer held.

        Raises LimitError when everything held is in use.
        """
        if self._pictures.get(picture.picture_id) is not picture or picture.has(index):
            return
        picture.questions += 1  # so that the picture itself is not evicted
        try:
            self._evict_for(view.nbytes)
        finally:
            picture.questions -= 1
        self.size_bytes += view.nbytes
        picture._fill(index, view, decode_ms)
        if picture.complete:
            self.drop_file(picture)

    def count_use(self, picture: HeldPicture) -> None:
        """Count whether a question that names this picture found it complete."""
        if picture.complete:
            self.hits += 1
        else:
            self.misses += 1

    def reserve(self, size_bytes: int) -> None:
        """Count memory that others use for a picture, until `free`. Raises LimitError."""
        self._evict_for(size_bytes)
        self.size_bytes += size_bytes

    def free(self, size_bytes: int) -> None:
        """Stop counting reserved memory."""
        self.size_bytes -= size_bytes

    def keep_file(self, picture: HeldPicture, file: PartialFile) -> None:
        """Keep the part of an image file that an ended session received, if it is the longest; else free its memory.

        The caller has reserved that memory.
        """
        held = self._pictures.get(picture.picture_id) is picture and not picture.complete
        if not held or len(file.data) <= len(picture.kept_file.data if picture.kept_file else b""):
            self.free(len(file.data))
            return
        self.drop_file(picture)
        picture.kept_file = file
        picture.size_bytes += len(file.data)  # now counted with the picture, and evicted with it

    def drop_file(self, picture: HeldPicture) -> None:
        """Drop the kept part of a picture's image file."""
        if picture.kept_file is not None:
            picture.size_bytes -= len(picture.kept_file.data)
            if self._pictures.get(picture.picture_id) is picture:
                self.size_bytes -= len(picture.kept_file.data)
            picture.kept_file = None

    def fail(self, picture: HeldPicture, error: LimitError) -> None:
        """Drop a picture that does not fit into memory; questions that wait for it get `error`."""
        picture._error = error
        picture._settled.set()
        picture._tell()
        self._drop(picture)

    def drop_if_unused(self, picture: HeldPicture, *, keep: bool = False) -> None:
        """Drop a picture that nobody will complete; called when an uploader or a question is done with it.

        `keep`: keep what has arrived of it until others need the memory, because its device may reconnect and continue.
        """
        arrived = picture.view_indexes or picture.kept_file
        if not (picture.complete or picture.uploaders or picture.questions or (keep and arrived)):
            self._drop(picture)

    def _evict_for(self, size_bytes: int) -> None:
        for picture in list(self._pictures.values()) if self.size_bytes + size_bytes > self.capacity_bytes else ():
            if picture.evictable:
                self._drop(picture)
                self.evictions += 1
            if self.size_bytes + size_bytes <= self.capacity_bytes:
                return
        if self.size_bytes + size_bytes > self.capacity_bytes:
            raise LimitError(
                f"the server's memory for pictures ({self.capacity_bytes} bytes) is in use by questions and pictures "
                "that are being sent; ask again later, or give the server more (--cache-mib)",
                reason="CACHE_FULL",
            )

    def _drop(self, picture: HeldPicture) -> None:
        if self._pictures.get(picture.picture_id) is picture:
            del self._pictures[picture.picture_id]
            self.size_bytes -= picture.size_bytes
