"""The views that one session is sending, a packet for each or one for several.

Promises that a packet is checked before it is decoded, that packets are decoded a few at a time in worker threads, and
that a view counts as in flight until its acknowledgement is queued. Leaves what packets mean to `assemble`, and when
views are acknowledged to `view_acks`.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_server.assemble import Assembler
from edge_server.memory_errors import memory_limit_error
from edge_server.outbox import Outbox
from edge_server.picture_cache import PictureCache
from edge_server.runtime import Runtime
from edge_server.settings import SessionLimits
from edge_server.view_acks import AckBatcher
from tofc.errors import InvalidRequestError
from tofc.v1 import tofc_pb2 as pb


class ViewUploads:
    """Decodes the packets of the session `name`, each while it holds one of `slots` for each of its views."""

    def __init__(
        self,
        *,
        name: str,
        pictures: PictureCache,
        limits: SessionLimits,
        runtime: Runtime,
        outbox: Outbox,
        slots: asyncio.Semaphore,
    ) -> None:
        self._name = name
        self._pictures = pictures
        self._limits = limits
        self._runtime = runtime
        self._outbox = outbox
        self._slots = slots
        self._acks = AckBatcher()

    def check(self, index: int, count: int, packet: bytes, announced: pb.Picture) -> None:
        """Check a packet of `count` views from `index` on without decoding it. Raises InvalidRequestError."""
        if announced.HasField("image"):
            raise InvalidRequestError(
                f"ref {announced.ref} was announced as an image file, got view {index} of it; send the file in chunks",
                reason="VIEW_OF_IMAGE",
            )
        if index + count - 1 > _last_index(announced):
            raise InvalidRequestError(
                f"the index of a view of ref {announced.ref} must be 0 to {_last_index(announced)}, got "
                f"{index + count - 1}",
                reason="VIEW_INDEX_INVALID",
            )
        if count > self._limits.views_per_packet:
            raise InvalidRequestError(
                f"a packet must have at most {self._limits.views_per_packet} views, got {count} of ref "
                f"{announced.ref}; send several packets",
                reason="VIEW_COUNT_INVALID",
            )
        if len(packet) > self._limits.packet_bytes:
            raise InvalidRequestError(
                f"a packet must have at most {self._limits.packet_bytes} bytes, got {len(packet)} for view {index} of "
                f"ref {announced.ref}; keep fewer features",
                reason="PACKET_TOO_LARGE",
            )

    async def take(
        self, index: int, count: int, packet: bytes, announced: pb.Picture, codec_id: str, group: asyncio.TaskGroup
    ) -> None:
        """Have a task of `group` decode a checked packet with the session's codec, once a slot is free.

        The task raises CorruptPacketError, InvalidRequestError. If there is not enough memory for the views, questions
        about the picture get the error.
        """
        for _ in range(self._places(count)):  # a client that sends faster than this decodes is slowed down here
            await self._slots.acquire()
        group.create_task(self._decode(range(index, index + count), packet, announced, codec_id))

    def _places(self, views: int) -> int:
        """Return how many slots a packet takes: one for each view, at most all of them."""
        return min(views, self._limits.views_in_flight)

    async def _decode(self, indexes: range, packet: bytes, announced: pb.Picture, codec_id: str) -> None:
        last = indexes[-1] == _last_index(announced)
        try:
            # A view that the server has already, or whose picture was evicted meanwhile, is acknowledged and dropped: a
            # question that names the picture requests it again.
            picture = self._pictures.get(announced.picture_id, (announced.rows, announced.columns))
            if picture is not None and not all(picture.has(index) for index in indexes):
                decoding = functools.partial(
                    _timed_views, self._runtime.backend.assembler, packet, codec_id, len(indexes), last
                )
                try:
                    views, decode_ms = await asyncio.get_running_loop().run_in_executor(self._runtime.pool, decoding)
                    each_s = decode_ms / 1e3 / len(indexes)
                    for index, rows in zip(indexes, views, strict=True):
                        self._pictures.put(picture, index, rows, decode_ms)
                        self._runtime.observer.view(each_s)
                        decode_ms = 0.0  # counted with the first view
                except Exception as error:
                    limit = memory_limit_error(error, f"view {indexes[0]} of ref {announced.ref} of {self._name}")
                    if limit is None:
                        raise
                    self._pictures.fail(picture, limit)
                    picture = None
            # The slot is held until this is queued, so that a client which reads nothing cannot send views without end.
            done = picture is None or picture.complete
            for index in indexes:
                for ack in self._acks.add(announced.ref, index, last=done and index == indexes[-1]):
                    await self._outbox.send(view_ack=ack)
        finally:
            for _ in range(self._places(len(indexes))):
                self._slots.release()


def _last_index(announced: pb.Picture) -> int:
    """Return the index of the global view, which comes after the crops."""
    return announced.rows * announced.columns


def _timed_views(
    assembler: Assembler, packet: bytes, codec_id: str, count: int, last: bool
) -> tuple[Sequence[NDArray[np.float32]], float]:
    """Return the rows of each view of a packet, and the milliseconds that they took."""
    started = time.perf_counter()
    views = assembler.views(packet, codec_id=codec_id, count=count, last=last)
    return views, (time.perf_counter() - started) * 1e3
