"""Pictures the server holds: decoded, projected, bounded in bytes, shared by all sessions.

Promises that memory stays below the bound, that a picture a question uses is not evicted, and that a
picture is complete exactly when all its views are in. What a lost link left of a picture is kept until others need the
room, for the device to go on from. Leaves decoding to `assemble` and announcing to sessions. Everything here runs
in the event loop's thread.

A picture is known by the device's hash of it, which a server cannot check: whoever may open a session
(see the token) is trusted not to announce one picture under the hash of another. The hash is made with the
cache's key, which sessions alone are told (`shared.rpc.picture_id`).
"""

import asyncio
import secrets
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shared.rpc.errors import LimitError, MismatchError
from shared.rpc.picture_id import KEY_BYTES

OVERHEAD = 2048  # bytes that a picture costs beside its rows


@dataclass(kw_only=True, eq=False)
class ImageFile:
    """A picture's image file as far as it came."""

    total: int
    data: bytearray = field(default_factory=bytearray)
    crc32: int = 0

    def add(self, data: bytes) -> None:
        self.data += data
        self.crc32 = zlib.crc32(data, self.crc32)


class Picture:
    """Views of one picture in prompt order: crops row by row, the global view last."""

    def __init__(self, picture_id: bytes, rows: int, columns: int) -> None:
        self.picture_id = picture_id
        self.rows = rows
        self.columns = columns
        self.decode_ms = 0.0
        self.size = OVERHEAD
        self.uploaders = 0  # sessions that announced it and may still send views
        self.questions = 0  # that wait for it or are reading it
        self.developing = 0  # image files of it that are wholly here: no client is waited for
        self.arriving: list[ImageFile] = []  # from open sessions, whose memory is reserved apart from `size`
        self.left: ImageFile | None = None  # by a session that ended; part of `size`
        self._views: list[NDArray[np.float32] | None] = [None] * (rows * columns + 1)
        self._missing = len(self._views)
        self._complete = asyncio.Event()
        self._lost: LimitError | None = None

    @property
    def count(self) -> int:
        """Views of the picture, the global one included."""
        return len(self._views)

    @property
    def complete(self) -> bool:
        return self._missing == 0

    @property
    def missing(self) -> int:
        return self._missing

    @property
    def views(self) -> list[NDArray[np.float32]]:
        """Rows [n, H] of every view of a complete picture."""
        return [view for view in self._views if view is not None]

    @property
    def held(self) -> list[int]:
        """Indexes of the views that are in."""
        return [index for index, view in enumerate(self._views) if view is not None]

    @property
    def received(self) -> ImageFile | None:
        """The most that is here of an image file, whoever sent it."""
        files = [*self.arriving, *([self.left] if self.left else [])]
        return max(files, key=lambda file: len(file.data), default=None)

    @property
    def evictable(self) -> bool:
        return not self.questions and (self.complete or not self.uploaders)

    def has(self, index: int) -> bool:
        return self._views[index] is not None

    async def wait(self) -> None:
        """Until every view is in. Raises LimitError when that will not be: see `PictureCache.lose`."""
        await self._complete.wait()
        if self._lost is not None:
            raise LimitError(self._lost.message, reason=self._lost.reason)  # each its own: they have tracebacks

    def _fill(self, index: int, view: NDArray[np.float32], decode_ms: float) -> None:
        self._views[index] = view
        self._missing -= 1
        self.size += view.nbytes
        self.decode_ms += decode_ms
        if self.complete:
            self._complete.set()


class PictureCache:
    """Least recently used pictures go first; incomplete ones too when nobody sends them any more."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.key = secrets.token_bytes(KEY_BYTES.start)  # of the hashes that its pictures are known by
        self.size = 0
        self._pictures: OrderedDict[bytes, Picture] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._pictures)

    def get(self, picture_id: bytes, layout: tuple[int, int] | None = None) -> Picture | None:
        """The picture, which counts as a use of it; None when it is not held, or with other (rows, columns).

        (It may have gone, and have been announced anew by others: views of the one would not fit the other.)
        """
        picture = self._pictures.get(picture_id)
        if picture is None or layout not in (None, (picture.rows, picture.columns)):
            return None
        self._pictures.move_to_end(picture_id)
        return picture

    def open(self, picture_id: bytes, rows: int, columns: int) -> Picture:
        """The picture held under this id, or a new one without views.

        Raises MismatchError when it is held with another layout, LimitError when there is no room.
        """
        if (held := self.get(picture_id, (rows, columns))) is not None:
            return held
        other = self._pictures.get(picture_id)
        if other is not None and other.evictable and not other.complete:  # what is left of it is no use to this one
            self._drop(other)
        elif other is not None:
            raise MismatchError(
                f"picture {picture_id.hex()} is known with {other.rows} x {other.columns} crops, now it is "
                f"announced with {rows} x {columns}; hash the picture again",
                reason="LAYOUT_MISMATCH",
            )
        picture = Picture(picture_id, rows, columns)
        self._make_room(picture.size)
        self._pictures[picture_id] = picture
        self.size += picture.size
        return picture

    def put(self, picture: Picture, index: int, view: NDArray[np.float32], decode_ms: float) -> None:
        """Adds a view [n, H] to a held picture; one that is there, or a picture that has gone, is left alone.

        Raises LimitError when everything held is in use.
        """
        if self._pictures.get(picture.picture_id) is not picture or picture.has(index):
            return
        picture.questions += 1  # making room must not take the picture itself
        try:
            self._make_room(view.nbytes)
        finally:
            picture.questions -= 1
        self.size += view.nbytes
        picture._fill(index, view, decode_ms)
        if picture.complete:
            self.forget(picture)

    def reserve(self, size: int) -> None:
        """Counts bytes that are kept for a picture elsewhere, until `free`. Raises LimitError."""
        self._make_room(size)
        self.size += size

    def free(self, size: int) -> None:
        """What was reserved is needed no more."""
        self.size -= size

    def leave(self, picture: Picture, file: ImageFile) -> None:
        """A file with reserved memory comes no further: kept with its picture if it is the most that there is of it."""
        held = self._pictures.get(picture.picture_id) is picture and not picture.complete
        if not held or len(file.data) <= len(picture.left.data if picture.left else b""):
            self.free(len(file.data))
            return
        self.forget(picture)
        picture.left = file
        picture.size += len(file.data)  # now counted with the picture, and evicted with it

    def forget(self, picture: Picture) -> None:
        """What was left of its image file is needed no more."""
        if picture.left is not None:
            picture.size -= len(picture.left.data)
            if self._pictures.get(picture.picture_id) is picture:
                self.size -= len(picture.left.data)
            picture.left = None

    def lose(self, picture: Picture, error: LimitError) -> None:
        """There is no room for one of its views: questions that wait for it hear `error`, others get it sent again."""
        picture._lost = error
        picture._complete.set()
        self._drop(picture)

    def settle(self, picture: Picture, *, keep: bool = False) -> None:
        """To call when an uploader or a question let go: drops a picture that nobody will complete.

        ``keep``: what is here of it may be gone on from, and stays until others need the room.
        """
        begun = picture.held or picture.left
        if not (picture.complete or picture.uploaders or picture.questions or (keep and begun)):
            self._drop(picture)

    def _make_room(self, size: int) -> None:
        for picture in list(self._pictures.values()) if self.size + size > self.capacity else ():
            if picture.evictable:
                self._drop(picture)
            if self.size + size <= self.capacity:
                return
        if self.size + size > self.capacity:
            raise LimitError(
                f"the server's memory for pictures ({self.capacity} bytes) is in use by questions and pictures under "
                "way; ask again later, or give the server more (--cache-mib)",
                reason="CACHE_FULL",
            )

    def _drop(self, picture: Picture) -> None:
        if self._pictures.get(picture.picture_id) is picture:
            del self._pictures[picture.picture_id]
            self.size -= picture.size
