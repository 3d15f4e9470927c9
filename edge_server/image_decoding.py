"""An image file → the rows [N, H] of its picture's views, which otherwise come from packets.

    file ─ header ─ Pillow ─ views ─ tower ─ all features [N, D] ─ project, place ─→ [N, H]      one thread
           checks                    views of one size together, as many as fit an accelerator's memory

Promises that nothing is decoded before announcement, limits and the file's header agree, that the whole server decodes
one file at a time, and that a file which cannot be decoded is refused with an error that says why. Leaves collecting
the file to `image_uploads` and keeping the rows to `picture_cache`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_server.engine.accelerator_loss import accelerator_lost
from edge_server.engine.refusals import failed
from edge_server.picture_cache import HeldPicture, PictureCache
from edge_server.settings import SessionLimits
from tofc.errors import (
    CorruptPacketError,
    ImageCodecError,
    ImageError,
    InvalidRequestError,
    MismatchError,
    UnavailableError,
)
from tofc.model.image_codec import decompress, require
from tofc.model.views import ViewRule, plan, views
from tofc.model.vision_tower import in_parts
from tofc.v1 import tofc_pb2 as pb

if TYPE_CHECKING:
    from tofc.model.projector import Projector
    from tofc.model.tower import Tower

log = logging.getLogger(__name__)

T = TypeVar("T")
CODECS: dict[int, str] = {
    pb.IMAGE_FORMAT_JPEG: "jpeg",
    pb.IMAGE_FORMAT_WEBP: "webp",
    pb.IMAGE_FORMAT_AVIF: "avif",
    pb.IMAGE_FORMAT_JXL: "jxl",
}


class ViewEncoder(Protocol):
    """Encodes the views of image files, in a worker thread."""

    @property
    def rule(self) -> ViewRule:
        """How a picture is cut into views."""

    def at_once(self, side: int) -> int:
        """Return how many views of `side` px are best encoded together."""

    def encode(self, views: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Turn views of one size, normalised pixels [3, S, S], into rows [n, H] for the decoder each."""


class TowerViewEncoder:
    """The vision tower of a checkpoint, with the projector on its device.

    `add_grid` adds the grid embedding to rows [N, H] of all cells [N] of a grid, in place.
    """

    def __init__(
        self,
        rule: ViewRule,
        tower: Tower,
        projector: Projector,
        add_grid: Callable[[NDArray[np.float32], int, NDArray[np.integer]], NDArray[np.float32]],
    ) -> None:
        """Copy the projector's weights to the tower's device, unless that is the CPU."""
        self.rule = rule
        self._tower = tower
        self._projector = None if tower.device.type == "cpu" else projector.on(tower.device)
        self._project_on_cpu = projector.project
        self._add_grid = add_grid

    def at_once(self, side: int) -> int:
        return self._tower.at_once(side)

    def encode(self, views: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        pixels = np.stack(views)
        if self._projector is None:
            rows = self._project_on_cpu(self._tower.encode(pixels).reshape(-1, self._tower.config.feature_dim))
        else:
            rows = self._projector(self._tower.features(pixels).flatten(0, 1))  # [B · N, H]
        grid = self._tower.config.grid(pixels.shape[-1])
        return [self._add_grid(one, grid, np.arange(len(one))) for one in np.split(rows, len(views))]


def check_image(announced: pb.Picture, limits: SessionLimits, rule: ViewRule | None) -> None:
    """Check that this server accepts an announced image. Raises CallError."""
    image = announced.image
    if rule is None or not limits.image_bytes:
        raise MismatchError(
            "this server does not take image files; start it with `edge-server serve --take-images`, or send packets",
            reason="IMAGES_NOT_TAKEN",
        )
    if image.format not in CODECS:
        raise InvalidRequestError(
            f"image format must be {', '.join(f'{n} ({name})' for n, name in CODECS.items())}, got {image.format}",
            reason="IMAGE_FORMAT_UNKNOWN",
        )
    if not 1 <= image.width * image.height <= limits.image_pixels:
        raise InvalidRequestError(
            f"the image must have 1 to {limits.image_pixels} px, got {image.width} x {image.height}; scale it down",
            reason="IMAGE_TOO_LARGE",
        )
    try:
        require(CODECS[image.format])
    except ImageCodecError as error:
        raise MismatchError(
            f"the server cannot decode {CODECS[image.format]} files: {error}", reason=error.reason
        ) from None
    try:
        made = plan(image.width, image.height, rule)
    except ImageError as error:
        raise InvalidRequestError(str(error), reason="IMAGE_INVALID") from None
    if (square := made.padded[0] * made.padded[1]) > limits.image_pixels:
        raise InvalidRequestError(
            f"the image is {image.width} x {image.height} px, which is padded to {made.padded[0]} x {made.padded[1]}: "
            f"{square} px, at most {limits.image_pixels} are allowed; scale it down, or crop its longer side",
            reason="IMAGE_TOO_LARGE",
        )
    if (announced.rows, announced.columns) != (made.rows, made.columns):
        raise InvalidRequestError(
            f"an image of {image.width} x {image.height} px has {made.rows} x {made.columns} crops, but "
            f"{announced.rows} x {announced.columns} were announced; update the older of client and server",
            reason="LAYOUT_INVALID",
        )


def read_views(data: bytes, image: pb.Image, rule: ViewRule, max_pixels: int) -> list[NDArray[np.float32]]:
    """Return the pixels [3, S, S] of every view of an announced image. Raises CorruptPacketError, MemoryError."""
    try:
        opened = decompress(data, CODECS[image.format], max_pixels=max_pixels)
        if opened.size != (image.width, image.height):
            raise ImageCodecError(
                "IMAGE_INVALID",
                f"the file is {opened.width} x {opened.height} px, but {image.width} x {image.height} was announced",
            )
        return [view.pixels for view in views(opened, rule)]
    except ImageCodecError as error:
        raise CorruptPacketError(f"{error}; send the picture again", reason=error.reason) from None


@dataclass(frozen=True, kw_only=True)
class ImageDecodeQueue:
    """Decodes image files and encodes their views, one file at a time for the whole server, in a thread of its own.

    So it takes the memory of one picture however many sessions send files, and packets never wait for the tower.
    """

    encoder: ViewEncoder
    pictures: PictureCache
    max_pixels: int
    on_loss: Callable[[UnavailableError], None] = lambda _: None  # is told if the GPU is lost for good
    pool: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="tofc-images"))
    _turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    async def decode(self, announced: pb.Picture, file: bytes) -> None:
        """Add every view of a file to its picture, except those that the picture has already.

        Stops when the picture is no longer held. Raises CorruptPacketError, LimitError, MemoryError, and
        UnavailableError (ENGINE_LOST) if the GPU is lost.
        """
        async with self._turn:
            if (held := self._unfinished(announced)) is None:
                return
            reading = partial(read_views, file, announced.image, self.encoder.rule, self.max_pixels)
            pixels, decode_ms = await self._run(reading)
            for part in in_parts([view.shape[-1] for view in pixels], self.encoder.at_once):
                if (held := self._unfinished(announced)) is None:
                    return
                missing = [index for index in part if not held.has(index)]
                if missing:
                    encoding = partial(self.encoder.encode, [pixels[index] for index in missing])
                    found, encode_ms = await self._run(encoding)
                    for index, rows in zip(missing, found, strict=True):
                        self.pictures.put(held, index, rows, decode_ms + encode_ms)
                        decode_ms = encode_ms = 0.0  # counted with the first view

    def _unfinished(self, announced: pb.Picture) -> HeldPicture | None:
        picture = self.pictures.get(announced.picture_id, (announced.rows, announced.columns))
        return None if picture is None or picture.complete else picture

    async def _run(self, work: Callable[[], T]) -> tuple[T, float]:
        def timed() -> tuple[T, float]:
            started = time.perf_counter()
            return work(), (time.perf_counter() - started) * 1e3

        try:
            return await asyncio.get_running_loop().run_in_executor(self.pool, timed)
        except RuntimeError as error:
            if not accelerator_lost(error):
                raise
            log.exception("the vision tower failed")
            self.on_loss(lost := failed())
            raise lost from error
