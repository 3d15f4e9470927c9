"""A picture that comes as an image file → the rows [n, H] of its views, as packets would have given them.

    file ─ header ─ Pillow ─ views ─ tower ─ all features [N, D] ─ project, place ─→ [N, H]      one thread
           checks                    view by view

Promises that nothing is decoded before announcement, limits and the file's header agree, that one file at a
time is decoded on the whole server, and that what a stranger sent ends in a sentence. Leaves collecting the
file to `image_uploads` and keeping the rows to `pictures`.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_server.pictures import Picture, PictureCache
from edge_server.settings import SessionLimits
from shared.model.image_file import ImageFileError, decompress, require
from shared.model.views import ImageError, ViewRule, plan, views
from shared.rpc.errors import CorruptPacketError, InvalidRequestError, MismatchError
from shared.rpc.tofc.v1 import tofc_pb2

if TYPE_CHECKING:
    from shared.model.tower import Tower

T = TypeVar("T")
CODECS: dict[int, str] = {
    tofc_pb2.IMAGE_FORMAT_JPEG: "jpeg",
    tofc_pb2.IMAGE_FORMAT_WEBP: "webp",
    tofc_pb2.IMAGE_FORMAT_AVIF: "avif",
    tofc_pb2.IMAGE_FORMAT_JXL: "jxl",
}


class Looker(Protocol):
    """What sees views. `look` runs in a worker thread, one at a time."""

    @property
    def rule(self) -> ViewRule: ...

    def look(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """One view, normalised pixels [3, S, S] → rows [n, H] for the decoder."""


class TowerLooker:
    """The real one. `place` makes rows of features: [N, D], grid, cells [N] → [N, H]."""

    def __init__(
        self,
        rule: ViewRule,
        tower: "Tower",
        place: Callable[[NDArray[np.float32], int, NDArray[np.integer]], NDArray[np.float32]],
    ) -> None:
        self.rule = rule
        self._tower = tower
        self._place = place

    def look(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        features = self._tower.encode(pixels[None])[0]  # [N, D]
        return self._place(features, self._tower.config.grid(pixels.shape[-1]), np.arange(len(features)))


def check_image(announced: tofc_pb2.Picture, limits: SessionLimits, rule: ViewRule | None) -> None:
    """Raises TofcError for an announced image that this server does not take."""
    image = announced.image
    if rule is None or not limits.image_bytes:
        raise MismatchError(
            "this server takes no images; start it with `edge-server serve --take-images`, or send packets",
            reason="IMAGES_NOT_TAKEN",
        )
    if image.format not in CODECS:
        raise InvalidRequestError(
            f"image format {image.format}; allowed are {', '.join(f'{n} ({name})' for n, name in CODECS.items())}",
            reason="IMAGE_FORMAT_UNKNOWN",
        )
    if not 1 <= image.width * image.height <= limits.image_pixels:
        raise InvalidRequestError(
            f"the image is {image.width} x {image.height} px, allowed are 1 to {limits.image_pixels} px; scale it down",
            reason="IMAGE_TOO_LARGE",
        )
    try:
        require(CODECS[image.format])
    except ImageFileError as error:
        raise MismatchError(f"the server cannot decode it: {error}", reason=error.reason) from None
    try:
        made = plan(image.width, image.height, rule)
    except ImageError as error:
        raise InvalidRequestError(str(error), reason="IMAGE_INVALID") from None
    if (square := made.padded[0] * made.padded[1]) > limits.image_pixels:
        raise InvalidRequestError(
            f"the image is {image.width} x {image.height} px, which is padded to {made.padded[0]} x {made.padded[1]}: "
            f"{square} px, allowed are {limits.image_pixels}; scale it down, or cut it shorter",
            reason="IMAGE_TOO_LARGE",
        )
    if (announced.rows, announced.columns) != (made.rows, made.columns):
        raise InvalidRequestError(
            f"{announced.rows} x {announced.columns} crops are announced for {image.width} x {image.height} px, which "
            f"makes {made.rows} x {made.columns} of them; update the older of client and server",
            reason="LAYOUT_INVALID",
        )


def read_views(data: bytes, image: tofc_pb2.Image, rule: ViewRule, max_pixels: int) -> list[NDArray[np.float32]]:
    """The pixels [3, S, S] of every view of an announced image. Raises CorruptPacketError, MemoryError."""
    try:
        opened = decompress(data, CODECS[image.format], max_pixels=max_pixels)
        if opened.size != (image.width, image.height):
            raise ImageFileError(
                "IMAGE_INVALID",
                f"the file is {opened.width} x {opened.height} px, announced were {image.width} x {image.height}",
            )
        return [view.pixels for view in views(opened, rule)]
    except ImageFileError as error:
        raise CorruptPacketError(f"{error}; send the picture again", reason=error.reason) from None


@dataclass(frozen=True, kw_only=True)
class Darkroom:
    """Where files become rows: one for the whole server, one file at a time, in a thread of its own.

    So its memory is that of one picture, however many sessions send some, and packets never wait for a tower.
    """

    looker: Looker
    pictures: PictureCache
    max_pixels: int
    pool: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="tofc-images"))
    _turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    async def develop(self, announced: tofc_pb2.Picture, file: bytes) -> None:
        """Put every view of a file into its picture; those that another session's file filled are left alone.

        Stops where the picture is held no more. Raises CorruptPacketError, LimitError, MemoryError.
        """
        async with self._turn:
            if (held := self._unfinished(announced)) is None:
                return
            reading = partial(read_views, file, announced.image, self.looker.rule, self.max_pixels)
            pixels, took = await self._run(reading)
            for index, view in enumerate(pixels):
                if (held := self._unfinished(announced)) is None:
                    return
                if not held.has(index):
                    rows, looked = await self._run(partial(self.looker.look, view))
                    self.pictures.put(held, index, rows, took + looked)
                    took = 0.0

    def _unfinished(self, announced: tofc_pb2.Picture) -> Picture | None:
        picture = self.pictures.get(announced.picture_id, (announced.rows, announced.columns))
        return None if picture is None or picture.complete else picture

    async def _run(self, work: Callable[[], T]) -> tuple[T, float]:
        def timed() -> tuple[T, float]:
            began = time.perf_counter()
            return work(), (time.perf_counter() - began) * 1e3

        return await asyncio.get_running_loop().run_in_executor(self.pool, timed)
