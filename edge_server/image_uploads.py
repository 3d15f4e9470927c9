"""The image files that one session is sending, chunk by chunk.

Promises that a chunk is kept only if it continues its file, that its bytes count as memory of the picture cache until
the file is decoded or dropped, and that the part of a file that arrived before a session ended stays with its picture.
Leaves what the bytes mean to `image_decoding`.
"""

from __future__ import annotations

import asyncio

from edge_server.image_decoding import ImageDecodeQueue
from edge_server.memory_errors import memory_limit_error
from edge_server.picture_cache import HeldPicture, PartialFile, PictureCache
from edge_server.settings import SessionLimits
from tofc.errors import InvalidRequestError, LimitError
from tofc.rpc.channel import CHUNK_BYTES
from tofc.v1 import tofc_pb2 as pb

MAX_OFFERED = 8  # files arriving for one picture, of which a device may continue the longest; usually there is one


class ImageUploads:
    """At most one file arrives under each of the session's refs."""

    def __init__(self, pictures: PictureCache, limits: SessionLimits, image_decoder: ImageDecodeQueue | None) -> None:
        self._pictures = pictures
        self._limits = limits
        self._image_decoder = image_decoder
        self._arriving: dict[int, tuple[HeldPicture, PartialFile]] = {}  # by ref
        # Refs whose file continued a part that the server had: once each, as a small chunk makes it copy that part.
        self._continued: set[int] = set()

    async def take(
        self,
        chunk: pb.ImageChunk,
        announced: pb.Picture,
        slots: asyncio.Semaphore,
        group: asyncio.TaskGroup,
    ) -> int:
        """Keep a chunk; after the last one a task of `group` decodes the file, once one of `slots` is free.

        Return how many views will be decoded. Raises InvalidRequestError, LimitError, MemoryError; the task raises
        CorruptPacketError. If there is not enough memory to decode the file, questions about the picture get the error.
        """
        if self._image_decoder is None or not announced.HasField("image"):
            raise InvalidRequestError(
                f"ref {chunk.ref} was announced without an image file, got a chunk of one; send packets, or announce "
                "the picture with its image",
                reason="NO_IMAGE",
            )
        picture = self._pictures.get(announced.picture_id, (announced.rows, announced.columns))
        if picture is None or picture.complete:  # acknowledged and dropped, as views are
            self._drop(chunk.ref)
            return 0
        file = self._add(chunk, picture)
        if file is None:
            return 0
        try:
            await slots.acquire()  # a client that sends faster than the tower encodes is slowed down here
        except asyncio.CancelledError:
            self._pictures.keep_file(picture, file)
            raise
        picture.pending_decodes += 1

        def done(task: asyncio.Task[None]) -> None:
            picture.pending_decodes -= 1
            if task.cancelled():  # the session ended
                self._pictures.keep_file(picture, file)
            else:
                self._pictures.free(len(file.data))
            slots.release()

        # A callback, because a task that is cancelled before its first step runs none of its own code.
        group.create_task(self._decode(self._image_decoder, announced, picture, file)).add_done_callback(done)
        return picture.count

    async def _decode(
        self, image_decoder: ImageDecodeQueue, announced: pb.Picture, picture: HeldPicture, file: PartialFile
    ) -> None:
        try:
            await image_decoder.decode(announced, bytes(file.data))
        except Exception as error:
            size = f"{announced.image.width} x {announced.image.height} px"
            if (limit := memory_limit_error(error, f"a picture of {size}")) is None:
                raise
            self._pictures.fail(picture, limit)

    def fail(self, ref: int, announced: pb.Picture, error: LimitError) -> None:
        """Drop a file and its picture, which do not fit into memory."""
        self._drop(ref)
        if (picture := self._pictures.get(announced.picture_id, (announced.rows, announced.columns))) is not None:
            self._pictures.fail(picture, error)

    def close(self, *, keep: bool) -> None:
        """End the uploads of a session. `keep` what has arrived: its device may come back to continue."""
        for ref, (picture, _) in list(self._arriving.items()):
            if keep and (file := self._pop(ref)):
                self._pictures.keep_file(picture, file)
            else:
                self._drop(ref)

    def _add(self, chunk: pb.ImageChunk, picture: HeldPicture) -> PartialFile | None:
        """Add a chunk. Return the whole file if this was its last one; the caller then frees its memory.

        A chunk of a file whose start is missing is dropped.
        """
        starts = chunk.offset == 0 or chunk.total > 0
        self._check(chunk, starts)
        if starts:
            self._start(chunk, picture)
        if chunk.ref not in self._arriving:
            return None
        _, file = self._arriving[chunk.ref]
        if chunk.offset != len(file.data) or chunk.offset + len(chunk.data) > file.total:
            raise _out_of_order(chunk, f"the server has {len(file.data)} of {file.total} bytes")
        self._pictures.reserve(len(chunk.data))
        try:
            file.add(chunk.data)
        except MemoryError:
            self._pictures.free(len(chunk.data))
            raise
        if len(file.data) < file.total:
            return None
        self._pop(chunk.ref)
        return file

    def _start(self, chunk: pb.ImageChunk, picture: HeldPicture) -> None:
        """Start a file, or continue the part of it that the server has."""
        received = picture.longest_file if chunk.offset else None
        count = len(received.data) if received else 0
        if chunk.offset > count:
            raise _out_of_order(chunk, f"the server has {count} bytes")
        if chunk.offset and chunk.ref in self._continued:
            raise _out_of_order(chunk, "this session has already continued the part that the server had")
        first = bytes(received.data[: chunk.offset]) if received else b""
        self._drop(chunk.ref)
        for ref in [ref for ref, (one, _) in self._arriving.items() if self._pictures.get(one.picture_id) is not one]:
            self._drop(ref)  # its picture was evicted: the file must be sent from its start
        if first:
            self._continued.add(chunk.ref)
            self._pictures.drop_file(picture)  # this session takes over the part that an ended session left
            self._pictures.reserve(len(first))
        file = PartialFile(total=chunk.total)
        file.add(first)
        if len(picture.arriving) < MAX_OFFERED:
            picture.arriving.append(file)
        self._arriving[chunk.ref] = picture, file

    def _pop(self, ref: int) -> PartialFile | None:
        if ref not in self._arriving:
            return None
        picture, file = self._arriving.pop(ref)
        if file in picture.arriving:
            picture.arriving.remove(file)
        return file

    def _drop(self, ref: int) -> None:
        if file := self._pop(ref):
            self._pictures.free(len(file.data))

    def _check(self, chunk: pb.ImageChunk, starts: bool) -> None:
        if not 1 <= len(chunk.data) <= CHUNK_BYTES:
            raise InvalidRequestError(
                f"a chunk must have 1 to {CHUNK_BYTES} bytes, got {len(chunk.data)} of the image of ref {chunk.ref}",
                reason="IMAGE_CHUNK_INVALID",
            )
        if starts and not 1 <= chunk.total <= self._limits.image_bytes:
            raise InvalidRequestError(
                f"an image file must have 1 to {self._limits.image_bytes} bytes, got {chunk.total} for ref {chunk.ref}"
                "; lower its quality or scale it down",
                reason="IMAGE_TOO_LARGE",
            )


def _out_of_order(chunk: pb.ImageChunk, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"bytes {chunk.offset} to {chunk.offset + len(chunk.data)} of the image of ref {chunk.ref} are out of order: "
        f"{why}; send the file in order, or start again at 0",
        reason="IMAGE_CHUNK_INVALID",
    )
