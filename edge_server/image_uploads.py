"""The image files that one session is sending, chunk by chunk.

Promises that a chunk is kept only if it continues its file, and counts as memory of the server's pictures
from its arrival until the file was developed or given up. Leaves what the bytes mean to `images`.
"""

import asyncio
from dataclasses import dataclass, field

from edge_server.images import Darkroom
from edge_server.pictures import PictureCache
from edge_server.settings import SessionLimits
from shared.rpc.channel import CHUNK_BYTES
from shared.rpc.errors import InvalidRequestError
from shared.rpc.tofc.v1 import tofc_pb2


@dataclass(kw_only=True, eq=False)
class _Arriving:
    picture_id: bytes
    total: int
    data: bytearray = field(default_factory=bytearray)


class ImageUploads:
    """At most one file on its way under each of the session's refs."""

    def __init__(self, pictures: PictureCache, limits: SessionLimits, darkroom: Darkroom | None) -> None:
        self._pictures = pictures
        self._limits = limits
        self._darkroom = darkroom
        self._arriving: dict[int, _Arriving] = {}

    async def take(
        self,
        chunk: tofc_pb2.ImageChunk,
        announced: tofc_pb2.Picture,
        places: asyncio.Semaphore,
        group: asyncio.TaskGroup,
    ) -> int:
        """Keep a chunk; with the last one the file is developed by a task of `group`, when there is a place.

        Returns the views that begin to be made. Raises InvalidRequestError, LimitError; the task CorruptPacketError.
        """
        if self._darkroom is None or not announced.HasField("image"):
            raise InvalidRequestError(
                f"a chunk of ref {chunk.ref}, which was announced without an image; send its packets, or announce it "
                "with its image",
                reason="NO_IMAGE",
            )
        picture = self._pictures.get(announced.picture_id, (announced.rows, announced.columns))
        if picture is None or picture.complete:  # acknowledged and forgotten, as views are
            self._drop(chunk.ref)
            return 0
        file = self._add(chunk, announced.picture_id)
        if file is None:
            return 0
        try:
            await places.acquire()  # who sends faster than the tower sees is slowed down here
        except asyncio.CancelledError:
            self._pictures.free(len(file))
            raise
        picture.developing += 1

        def over(_: object) -> None:
            picture.developing -= 1
            self._pictures.free(len(file))
            places.release()

        # Not inside the task: one that is cancelled before its first step runs nothing of it.
        group.create_task(self._darkroom.develop(announced, file)).add_done_callback(over)
        return picture.count

    def close(self) -> None:
        """The session sends nothing any more."""
        for ref in list(self._arriving):
            self._drop(ref)

    def _add(self, chunk: tofc_pb2.ImageChunk, picture_id: bytes) -> bytes | None:
        """The whole file when this was its last chunk; its memory is then the caller's to free.

        Chunks of a file whose begin was not kept are forgotten.
        """
        self._check(chunk)
        if chunk.offset == 0:
            self._drop(chunk.ref)
            for ref in [ref for ref, one in self._arriving.items() if self._pictures.get(one.picture_id) is None]:
                self._drop(ref)  # what was let go is sent from its begin, if at all
            self._arriving[chunk.ref] = _Arriving(picture_id=picture_id, total=chunk.total)
        file = self._arriving.get(chunk.ref)
        if file is None:
            return None
        if chunk.offset != len(file.data) or chunk.offset + len(chunk.data) > file.total:
            raise InvalidRequestError(
                f"bytes {chunk.offset} to {chunk.offset + len(chunk.data)} of the image of ref {chunk.ref}, of which "
                f"{len(file.data)} of {file.total} are there; send it in order, or begin again at 0",
                reason="IMAGE_CHUNK_INVALID",
            )
        self._pictures.reserve(len(chunk.data))
        file.data += chunk.data
        if len(file.data) < file.total:
            return None
        del self._arriving[chunk.ref]
        return bytes(file.data)

    def _drop(self, ref: int) -> None:
        if file := self._arriving.pop(ref, None):
            self._pictures.free(len(file.data))

    def _check(self, chunk: tofc_pb2.ImageChunk) -> None:
        if not 1 <= len(chunk.data) <= CHUNK_BYTES:
            raise InvalidRequestError(
                f"a chunk of {len(chunk.data)} bytes of the image of ref {chunk.ref}; a chunk has 1 to {CHUNK_BYTES}",
                reason="IMAGE_CHUNK_INVALID",
            )
        if chunk.offset == 0 and not 1 <= chunk.total <= self._limits.image_bytes:
            raise InvalidRequestError(
                f"the image of ref {chunk.ref} has {chunk.total} bytes, allowed are 1 to {self._limits.image_bytes}; "
                "lower its quality or scale it down",
                reason="IMAGE_TOO_LARGE",
            )
