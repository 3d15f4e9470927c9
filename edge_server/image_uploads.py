"""The image files that one session is sending, chunk by chunk.

Promises that a chunk is kept only if it continues its file, and counts as memory of the server's pictures
from its arrival until the file was developed or given up; what came of it over a link that was lost stays with its
picture. Leaves what the bytes mean to `images`.
"""

import asyncio

from edge_server.images import Darkroom
from edge_server.pictures import ImageFile, Picture, PictureCache
from edge_server.settings import SessionLimits
from edge_server.shortage import shortage
from shared.rpc.channel import CHUNK_BYTES
from shared.rpc.errors import InvalidRequestError, LimitError
from shared.rpc.tofc.v1 import tofc_pb2

OFFERED = 8  # files that arrive for one picture, of which the longest is offered to who lost a link: one is usual


class ImageUploads:
    """At most one file on its way under each of the session's refs."""

    def __init__(self, pictures: PictureCache, limits: SessionLimits, darkroom: Darkroom | None) -> None:
        self._pictures = pictures
        self._limits = limits
        self._darkroom = darkroom
        self._arriving: dict[int, tuple[Picture, ImageFile]] = {}  # by ref
        self._continued: set[int] = set()  # refs whose file went on from what was here, which few bytes ask for

    async def take(
        self,
        chunk: tofc_pb2.ImageChunk,
        announced: tofc_pb2.Picture,
        places: asyncio.Semaphore,
        group: asyncio.TaskGroup,
    ) -> int:
        """Keep a chunk; with the last one the file is developed by a task of `group`, when there is a place.

        Returns the views that begin to be made. Raises InvalidRequestError, LimitError, MemoryError; the task
        CorruptPacketError. Where there is no memory to develop the file, questions about the picture hear it.
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
        file = self._add(chunk, picture)
        if file is None:
            return 0
        try:
            await places.acquire()  # who sends faster than the tower sees is slowed down here
        except asyncio.CancelledError:
            self._pictures.leave(picture, file)
            raise
        picture.developing += 1

        def over(task: asyncio.Task[None]) -> None:
            picture.developing -= 1
            if task.cancelled():  # the session ended
                self._pictures.leave(picture, file)
            else:
                self._pictures.free(len(file.data))
            places.release()

        # Not inside the task: one that is cancelled before its first step runs nothing of it.
        group.create_task(self._develop(self._darkroom, announced, picture, file)).add_done_callback(over)
        return picture.count

    async def _develop(
        self, darkroom: Darkroom, announced: tofc_pb2.Picture, picture: Picture, file: ImageFile
    ) -> None:
        try:
            await darkroom.develop(announced, bytes(file.data))
        except Exception as error:
            size = f"{announced.image.width} x {announced.image.height} px"
            if (told := shortage(error, f"a picture of {size}")) is None:
                raise
            self._pictures.lose(picture, told)

    def lose(self, ref: int, announced: tofc_pb2.Picture, error: LimitError) -> None:
        """There is no room for what comes of a file."""
        self._drop(ref)
        if (picture := self._pictures.get(announced.picture_id, (announced.rows, announced.columns))) is not None:
            self._pictures.lose(picture, error)

    def close(self, *, lost: bool) -> None:
        """The session sends nothing any more. ``lost``: its link was, and its device may come back for the rest."""
        for ref, (picture, _) in list(self._arriving.items()):
            if lost and (file := self._take(ref)):
                self._pictures.leave(picture, file)
            else:
                self._drop(ref)

    def _add(self, chunk: tofc_pb2.ImageChunk, picture: Picture) -> ImageFile | None:
        """The whole file when this was its last chunk; its memory is then the caller's to free.

        Chunks of a file whose begin was not kept are forgotten.
        """
        begins = chunk.offset == 0 or chunk.total > 0
        self._check(chunk, begins)
        if begins:
            self._begin(chunk, picture)
        if chunk.ref not in self._arriving:
            return None
        _, file = self._arriving[chunk.ref]
        if chunk.offset != len(file.data) or chunk.offset + len(chunk.data) > file.total:
            raise _out_of_order(chunk, f"{len(file.data)} of {file.total} are there")
        self._pictures.reserve(len(chunk.data))
        try:
            file.add(chunk.data)
        except MemoryError:
            self._pictures.free(len(chunk.data))
            raise
        if len(file.data) < file.total:
            return None
        self._take(chunk.ref)
        return file

    def _begin(self, chunk: tofc_pb2.ImageChunk, picture: Picture) -> None:
        """A file begins, or goes on from as much as is here of it."""
        received = picture.received if chunk.offset else None
        there = len(received.data) if received else 0
        if chunk.offset > there:
            raise _out_of_order(chunk, f"{there} are there")
        if chunk.offset and chunk.ref in self._continued:
            raise _out_of_order(chunk, "the session has gone on from what was there already")
        begun = bytes(received.data[: chunk.offset]) if received else b""
        self._drop(chunk.ref)
        for ref in [ref for ref, (one, _) in self._arriving.items() if self._pictures.get(one.picture_id) is not one]:
            self._drop(ref)  # what was let go is sent from its begin, if at all
        if begun:
            self._continued.add(chunk.ref)
            self._pictures.forget(picture)  # what an ended session left is this one's now
            self._pictures.reserve(len(begun))
        file = ImageFile(total=chunk.total)
        file.add(begun)
        if len(picture.arriving) < OFFERED:
            picture.arriving.append(file)
        self._arriving[chunk.ref] = picture, file

    def _take(self, ref: int) -> ImageFile | None:
        if ref not in self._arriving:
            return None
        picture, file = self._arriving.pop(ref)
        if file in picture.arriving:
            picture.arriving.remove(file)
        return file

    def _drop(self, ref: int) -> None:
        if file := self._take(ref):
            self._pictures.free(len(file.data))

    def _check(self, chunk: tofc_pb2.ImageChunk, begins: bool) -> None:
        if not 1 <= len(chunk.data) <= CHUNK_BYTES:
            raise InvalidRequestError(
                f"a chunk of {len(chunk.data)} bytes of the image of ref {chunk.ref}; a chunk has 1 to {CHUNK_BYTES}",
                reason="IMAGE_CHUNK_INVALID",
            )
        if begins and not 1 <= chunk.total <= self._limits.image_bytes:
            raise InvalidRequestError(
                f"the image of ref {chunk.ref} has {chunk.total} bytes, allowed are 1 to {self._limits.image_bytes}; "
                "lower its quality or scale it down",
                reason="IMAGE_TOO_LARGE",
            )


def _out_of_order(chunk: tofc_pb2.ImageChunk, there: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"bytes {chunk.offset} to {chunk.offset + len(chunk.data)} of the image of ref {chunk.ref}, of which {there}; "
        "send it in order, or begin again at 0",
        reason="IMAGE_CHUNK_INVALID",
    )
