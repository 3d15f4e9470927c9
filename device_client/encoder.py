"""Pictures → packets: views, vision tower, merging and entropy coding, in one thread off the event loop.

    image ─ views ─ tower ─ codec ─→ packet, packet, …      one view at a time: a packet of the first views is sent
                                                             while the next views are still computed

Promises that a view is encoded at most once, and only when a question waits for it. Leaves the algorithms to
`tofc.model` and `tofc.codec`, the sending to `picture_upload`. Torch is imported in `TowerEncoder.load` only, and only
for towers that need it.
"""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np
from PIL import Image

from device_client.compute import AS_STORED, Compute
from device_client.equal_files import EqualFiles, read_equal_files
from device_client.loader import LOADER
from device_client.picture import Encoded, ImageForm, Picture, open_picture
from device_client.rate import DEFAULT, RateChoice, RateController
from tofc.errors import EncoderError, ResourceError, UsageError
from tofc.model import feature_codecs
from tofc.model.checkpoint import Checkpoint
from tofc.model.views import View, ViewRule, views
from tofc.model.vision_tower import in_parts
from tofc.out_of_memory import out_of_memory
from tofc.terminal import one_line

if TYPE_CHECKING:
    from tofc.codec.codec import Codec, CodedView, Explanation
    from tofc.model.vision_tower import VisionTower

T = TypeVar("T")
THREAD = "encoder"  # name of the encoder thread
EXIT_TIMEOUT_S = 60.0  # for the view that is being computed when the process ends
_CLOSED = "the encoder was closed; open another session"


class Encoder(Protocol):
    """Turns pictures into packets. `load` and `encode` run in the encoder thread."""

    @property
    def model_id(self) -> str: ...
    @property
    def codec_id(self) -> str: ...
    @property
    def feature_codec(self) -> str | None:
        """Return the name of the codec in its checkpoint; None where pictures are sent as image files."""

    @property
    def rule(self) -> ViewRule: ...
    @property
    def setting(self) -> str:
        """Return a text: under one codec, equal settings give equal pictures the same views."""

    @property
    def form(self) -> ImageForm | None:
        """Return None for packets of views; else every picture is one packet, an image file of this form."""

    @property
    def ready(self) -> bool:
        """Return whether it is loaded."""

    def load(self) -> None:
        """Import and load weights, which is slow. Called once, before `encode`."""

    def unload(self) -> None:
        """Free the weights: nothing is encoded any more."""

    def encode(self, image: Image.Image) -> Iterator[Encoded]:
        """Yield the picture's views in prompt order, each computed when it is requested."""


class TowerEncoder:
    """The real encoder: a checkpoint's tower and codec on this device."""

    def __init__(self, checkpoint: Checkpoint, choice: RateChoice = DEFAULT, compute: Compute = AS_STORED) -> None:
        """Read the codec's configuration, no weights.

        Raises UsageError for a preset that the checkpoint's codec does not have, CodecError for a codec whose files
        contradict each other.
        """
        from tofc.codec.files import load_config  # needs safetensors, which image files do without

        self._checkpoint = checkpoint
        self._choice, self._compute = choice, compute
        config = load_config(checkpoint.codec_path)
        self.setting = choice.setting(config) + compute.setting(checkpoint)
        self._preset = choice.preset or config.preset
        self._tower: VisionTower | None = None
        self._codec: Codec | None = None

    @classmethod
    def open(
        cls,
        model: Path,
        choice: RateChoice = DEFAULT,
        compute: Compute = AS_STORED,
        feature_codec: str = feature_codecs.DEFAULT,
    ) -> TowerEncoder:
        """Open a checkpoint folder, whole or the device's half, with one of its codecs; reads no weights.

        Raises as the constructor, CheckpointError, and UsageError for a compute device that this machine does not have
        or a number type that the tower does not bear.
        """
        checkpoint = Checkpoint.open(model, side="device", feature_codec=feature_codec)
        compute.check(checkpoint)
        return cls(checkpoint, choice, compute)

    @property
    def model_id(self) -> str:
        return self._checkpoint.model_id

    @property
    def codec_id(self) -> str:
        return self._checkpoint.codec_id

    @property
    def feature_codec(self) -> str:
        return self._checkpoint.feature_codec

    @property
    def rule(self) -> ViewRule:
        return self._checkpoint.config.rule

    @property
    def form(self) -> None:
        return None

    def equal_files(self) -> tuple[str, EqualFiles]:
        """Return the preset's name, and the image files that answer as well. Raises CheckpointError."""
        return self._preset, read_equal_files(self._checkpoint.codec_path, self._preset)

    def load(self) -> None:
        from tofc.blas_threads import use_one_blas_thread
        from tofc.codec.codec import Codec

        use_one_blas_thread()
        try:
            self._codec = Codec.load(self._checkpoint.codec_path)
            self._tower = self._compute.open_tower(self._checkpoint)
        except (UsageError, ResourceError) as error:  # about the model, not about the picture that waits for it
            raise EncoderError(str(error)) from error
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise EncoderError(_short_of_memory("the vision tower")) from error

    @property
    def ready(self) -> bool:
        return self._tower is not None

    def unload(self) -> None:
        self._tower = self._codec = None

    def encode(self, image: Image.Image) -> Iterator[Encoded]:
        tower, codec = self._loaded()
        started = time.perf_counter()
        prepared = views(image, self.rule)
        controller = self._controller(codec, prepared)
        together: list[CodedView] = []
        count = len(prepared)
        views_ms = _ms_since(started)
        for part in in_parts([view.pixels.shape[-1] for view in prepared], tower.at_once):
            pixels = np.stack([prepared.pop(0).pixels for _ in part])  # taken out, so that they are freed
            started = time.perf_counter()
            encoded = tower.encode(pixels)  # [B, N, D]
            tower_ms = _ms_since(started) / len(part)
            for index, features in zip(part, encoded, strict=True):
                started = time.perf_counter()
                together.append(controller.code(features))
                packet, joins, joined = codec.write(together[-1:]), 0, b""
                if len(together) == self._choice.views_per_packet or index + 1 == count:
                    joins = len(together)
                    joined = codec.write(together) if joins > 1 else b""
                    together.clear()
                yield Encoded(
                    index=index,
                    packet=packet,
                    joins=joins,
                    joined=joined,
                    views_ms=views_ms if index == 0 else 0.0,
                    tower_ms=tower_ms,
                    encode_ms=_ms_since(started),
                    ended_s=time.perf_counter(),
                )

    def explain(self, image: Image.Image) -> Iterator[tuple[View, Explanation]]:
        """Yield every view and how many bits each part of its packet takes."""
        tower, codec = self._loaded()
        prepared = views(image, self.rule)
        controller = self._controller(codec, prepared)
        for view in prepared:
            features = tower.encode(view.pixels[None])[0]  # [N, D]
            yield view, codec.account(features, controller.code(features))

    def packets(self, views: Sequence[CodedView]) -> list[bytes]:
        """Return the packets in which the views of a picture leave."""
        _, codec = self._loaded()
        return codec.packets(views, self._choice.views_per_packet)

    def _controller(self, codec: Codec, prepared: Sequence[View]) -> RateController:
        sides = (self._checkpoint.config.grid(view.pixels.shape[-1]) for view in prepared)
        return RateController(codec, self._choice, [side * side for side in sides])

    def _loaded(self) -> tuple[VisionTower, Codec]:
        if self._tower is None or self._codec is None:
            raise EncoderError("the encoder is not loaded; call load() first")
        return self._tower, self._codec


class EncoderThread:
    """One thread that runs an encoder, a view at a time, for all questions.

    The thread is a daemon: a view of a large model takes seconds, and Ctrl-C should not wait for it. Where the process
    ends otherwise, `end_threads` waits: Python would end the thread within torch, which aborts the process.
    """

    running: ClassVar[weakref.WeakSet[EncoderThread]] = weakref.WeakSet()

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.load_ms = 0.0
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.broken: Exception | None = None  # why loading failed, if it did
        self.doing = ""  # what the thread does at the moment, for a user who waits
        self._closed = self._loaded = False

    def open(self, given: Path | bytes) -> Picture:
        """Open and identify a picture, a file or its bytes, under this encoder's codec and setting."""
        encoder = self.encoder
        return open_picture(given, encoder.rule, encoder.codec_id, encoder.setting, encoder.form)

    def start(self) -> None:
        """Start to load the model; return at once. Later calls do nothing."""
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._work, name=THREAD, daemon=True)
            self._submit(self._load)
            EncoderThread.running.add(self)
            self._thread.start()

    async def view(self, picture: Picture, index: int) -> Encoded:
        """Return packet `index` of a picture, encoded now unless it was before. Raises what the encoder raises."""
        if index < len(picture.packets):
            return picture.packets[index]
        self.start()
        return await asyncio.wrap_future(self._submit(lambda: self._encode_up_to(picture, index)))

    def close(self) -> None:
        """End the thread after the views that were requested; does not wait. Nothing more can be encoded.

        A model that has not started to load is not loaded any more.
        """
        self._closed = True
        self._jobs.put(None)
        LOADER.wake()

    def cancel_pending(self) -> None:
        """Cancel the views that were requested and not started."""
        with suppress(queue.Empty):
            while True:
                if item := self._jobs.get_nowait():
                    item[1].cancel()

    def _load(self) -> None:
        started = time.perf_counter()
        self.doing = "loading the model"
        try:
            self._loaded = LOADER.load(self.encoder, lambda: self._closed)
            if not self._loaded:
                self.broken = EncoderError(_CLOSED)
        except Exception as error:
            self.broken = error  # raised for every picture
        self.load_ms = _ms_since(started)

    def _encode_up_to(self, picture: Picture, index: int) -> Encoded:
        if self.broken is not None:
            raise self.broken
        # Only this thread appends: a question that is given up meanwhile leaves a packet, not a gap.
        while len(picture.packets) <= index:
            if picture.steps is None:
                assert picture.image is not None, "pixels are freed with the last view"
                picture.steps = (picture.encoder or self.encoder).encode(picture.image)
            self.doing = f"encoding {one_line(picture.source)}, {len(picture.packets) + 1} of {picture.n_packets}"
            try:
                picture.packets.append(next(picture.steps))
            except StopIteration:
                raise EncoderError(
                    f"{picture.source} gave {len(picture.packets)} packets, expected {picture.n_packets}"
                ) from None
            except Exception as error:
                picture.steps = None  # a generator that raised has ended: the next attempt starts again
                picture.packets.clear()
                if isinstance(error, UsageError):  # for instance the codec's, for features that hold NaN
                    raise EncoderError(f"{picture.source} could not be encoded ({error})") from error
                if isinstance(error, (RuntimeError, MemoryError)) and out_of_memory(error):  # torch's, or Python's
                    raise EncoderError(_short_of_memory(picture.source)) from error
                raise
        if len(picture.packets) == picture.n_packets:
            picture.steps = picture.image = None
        return picture.packets[index]

    def _submit(self, job: Callable[[], T]) -> Future[T]:
        if self._closed:  # the thread would never do it
            raise EncoderError(_CLOSED)
        future: Future[T] = Future()
        self._jobs.put((job, future))
        return future

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, future = item
            if not future.set_running_or_notify_cancel():
                continue  # given up: the view is not computed
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
            self.doing = ""
        if self._loaded:
            LOADER.release(self.encoder)


@atexit.register
def end_threads(timeout_s: float = EXIT_TIMEOUT_S) -> None:
    """Close every encoder thread and wait for the view, or the loading, that it is in the middle of."""
    threads = [thread for thread in EncoderThread.running if thread._thread is not None]
    for thread in threads:
        thread.cancel_pending()
        thread.close()
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        assert thread._thread is not None
        thread._thread.join(max(0.0, deadline - time.monotonic()))


def _short_of_memory(what: str) -> str:
    return (
        f"this device has not enough memory for {what}; end other programs, or use a smaller picture, a smaller number "
        "type (--dtype) or fewer threads (--threads)"
    )


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
