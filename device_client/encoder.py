"""Pictures → packets: views, vision tower, merging and entropy coding, in one thread off the event loop.

    image ─ views ─ tower ─ codec ─→ packet, packet, …      one view at a time, so that a packet is on its
                                                             way while the next view is still computed

Promises that a view is encoded at most once and only when somebody waits for it. Leaves the algorithms to
`shared.model` and `shared.codec`, the sending to `delivery`. Torch is imported in `TowerEncoder.load` only.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from PIL import Image

from device_client.compute import AS_STORED, Compute
from device_client.errors import EncoderError
from device_client.loading import LOADS
from device_client.picture import Encoded, ImageForm, Picture, open_picture
from device_client.rate import DEFAULT, RateChoice, Spending
from shared.install import install
from shared.model.checkpoint import Checkpoint
from shared.model.room import RoomError
from shared.model.threads import use_threads, wait_asleep
from shared.model.views import View, ViewRule, views
from shared.out_of_memory import out_of_memory
from shared.terminal import one_line

if TYPE_CHECKING:
    from shared.codec.codec import Codec, Explanation
    from shared.model.tower import Tower

T = TypeVar("T")
THREAD = "encoder"  # name of the encoder thread
_CLOSED = "the encoder was closed; open another session"


class Encoder(Protocol):
    """What turns pictures into packets. ``load`` and ``encode`` run in the encoder thread."""

    @property
    def model_id(self) -> str: ...
    @property
    def codec_id(self) -> str: ...
    @property
    def rule(self) -> ViewRule: ...
    @property
    def setting(self) -> str:
        """Under one codec, equal settings give equal pictures the same packets."""

    @property
    def form(self) -> ImageForm | None:
        """None: a packet for each view. Else every picture is one packet, which is an image file."""

    @property
    def ready(self) -> bool:
        """Whether it is loaded."""

    def load(self) -> None:
        """The slow part of starting: imports and weights. Called once, before ``encode``."""

    def unload(self) -> None:
        """Let go of the weights: nothing is encoded any more."""

    def encode(self, image: Image.Image) -> Iterator[Encoded]:
        """The picture's packets in prompt order, each computed when it is asked for."""


class TowerEncoder:
    """The real one: a checkpoint's tower and codec on this device."""

    def __init__(self, checkpoint: Checkpoint, choice: RateChoice = DEFAULT, compute: Compute = AS_STORED) -> None:
        """Raises UseError for a preset that the checkpoint's codec has not, CodecError for a codec without sense."""
        from shared.codec.weights import CodecConfig  # needs safetensors, which image files do without

        self._checkpoint = checkpoint
        self._choice, self._compute = choice, compute
        self.setting = choice.setting(CodecConfig.load(checkpoint.path)) + compute.setting(checkpoint)
        self._tower: Tower | None = None
        self._codec: Codec | None = None

    @classmethod
    def open(cls, model: Path, choice: RateChoice = DEFAULT, compute: Compute = AS_STORED) -> TowerEncoder:
        """From a checkpoint directory, whole or the device's half; reads no weights.

        Raises CheckpointError too, and UseError for a device that is not there.
        """
        compute.check()
        return cls(Checkpoint.open(model, side="device"), choice, compute)

    @property
    def model_id(self) -> str:
        return self._checkpoint.model_id

    @property
    def codec_id(self) -> str:
        return self._checkpoint.codec_id

    @property
    def rule(self) -> ViewRule:
        return self._checkpoint.config.rule

    @property
    def form(self) -> None:
        return None

    def load(self) -> None:
        from shared.codec.codec import Codec
        from shared.codec.threads import use_one_blas_thread

        use_one_blas_thread()
        wait_asleep()
        try:
            import torch

            from shared.model.tower import Tower

            use_threads(self._compute.threads)
        except ImportError as error:
            raise EncoderError(f"the vision tower needs {error.name}: {install('device')}") from error
        try:
            self._codec = Codec.load(self._checkpoint.path)
            dtype = getattr(torch, self._compute.dtype_of(self._checkpoint))
            self._tower = Tower(self._checkpoint, dtype, self._compute.device)
        except (ValueError, RoomError) as error:  # the model's fault, not that of the picture that is waiting
            raise EncoderError(str(error)) from error
        except (RuntimeError, MemoryError) as error:
            said = _short_of_memory(error, "the vision tower") or f"the vision tower could not be loaded ({error})"
            raise EncoderError(said) from error

    @property
    def ready(self) -> bool:
        return self._tower is not None

    def unload(self) -> None:
        self._tower = self._codec = None

    def encode(self, image: Image.Image) -> Iterator[Encoded]:
        tower, codec = self._parts()
        begun = time.perf_counter()
        prepared = views(image, self.rule)
        spending = self._spending(codec, prepared)
        views_ms = _ms_since(begun)
        for index in range(len(prepared)):
            view = prepared.pop(0)  # its pixels go with it
            begun = time.perf_counter()
            features = tower.encode(view.pixels[None])[0]  # [N, D]
            tower_ms = _ms_since(begun)
            begun = time.perf_counter()
            packet = codec.encode(features, *spending.next(features))
            yield Encoded(
                index=index,
                packet=packet,
                views_ms=views_ms if index == 0 else 0.0,
                tower_ms=tower_ms,
                encode_ms=_ms_since(begun),
            )

    def explain(self, image: Image.Image) -> Iterator[tuple[View, Explanation]]:
        """Every view, and where the bits of its packet go."""
        tower, codec = self._parts()
        prepared = views(image, self.rule)
        spending = self._spending(codec, prepared)
        for view in prepared:
            features = tower.encode(view.pixels[None])[0]  # [N, D]
            yield view, codec.explain(features, *spending.next(features))

    def _spending(self, codec: Codec, prepared: Sequence[View]) -> Spending:
        sides = (self._checkpoint.config.grid(view.pixels.shape[-1]) for view in prepared)
        return Spending(codec, self._choice, [side * side for side in sides])

    def _parts(self) -> tuple[Tower, Codec]:
        if self._tower is None or self._codec is None:
            raise EncoderError("the encoder is not loaded; call load() first")
        return self._tower, self._codec


class EncoderThread:
    """One thread that runs an encoder, a view at a time, for everybody who waits.

    The thread is a daemon: a view of a large model takes seconds, and Ctrl-C should not wait for it.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.load_ms = 0.0
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.broken: Exception | None = None  # why loading failed
        self.doing = ""  # what takes long at this moment, for a person who waits
        self._closed = self._loaded = False

    def open(self, path: Path) -> Picture:
        """Open and identify a picture under this encoder's codec and setting."""
        encoder = self.encoder
        return open_picture(path, encoder.rule, encoder.codec_id, encoder.setting, encoder.form)

    def start(self) -> None:
        """Begin to load the model; returns at once. Later calls do nothing."""
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._work, name=THREAD, daemon=True)
            self._submit(self._load)
            self._thread.start()

    async def view(self, picture: Picture, index: int) -> Encoded:
        """Packet ``index`` of a picture, encoded now if it never was. Raises what the encoder raises."""
        if index < len(picture.packets):
            return picture.packets[index]
        self.start()
        return await asyncio.wrap_future(self._submit(lambda: self._until(picture, index)))

    def close(self) -> None:
        """End the thread after the views that were asked for; does not wait. Nothing more can be encoded.

        What does not load yet never will.
        """
        self._closed = True
        self._jobs.put(None)
        LOADS.closed()

    def _load(self) -> None:
        begun = time.perf_counter()
        self.doing = "loading the model"
        try:
            self._loaded = LOADS.load(self.encoder, lambda: self._closed)
            if not self._loaded:
                self.broken = EncoderError(_CLOSED)
        except Exception as error:
            self.broken = error  # every picture hears of it
        self.load_ms = _ms_since(begun)

    def _until(self, picture: Picture, index: int) -> Encoded:
        if self.broken is not None:
            raise self.broken
        # Only this thread appends, so that a waiter who gave up leaves a packet and not a gap.
        while len(picture.packets) <= index:
            if picture.steps is None:
                assert picture.image is not None, "pixels go with the last view"
                picture.steps = self.encoder.encode(picture.image)
            self.doing = f"looking at {one_line(picture.source)}, {len(picture.packets) + 1} of {picture.n_packets}"
            try:
                picture.packets.append(next(picture.steps))
            except StopIteration:
                raise EncoderError(
                    f"{picture.source} gave {len(picture.packets)} packets, not the {picture.n_packets} planned for it"
                ) from None
            except Exception as error:
                picture.steps = None  # a generator that raised is over: the next try begins again
                picture.packets.clear()
                if isinstance(error, EncoderError) or not isinstance(error, (RuntimeError, MemoryError, ValueError)):
                    raise
                # What torch raises when memory is short, for instance, or the codec for features that are none.
                said = _short_of_memory(error, picture.source) or f"{picture.source} could not be encoded ({error})"
                raise EncoderError(said) from error
        if len(picture.packets) == picture.n_packets:
            picture.steps = picture.image = None
        return picture.packets[index]

    def _submit(self, job: Callable[[], T]) -> Future[T]:
        if self._closed:  # nobody would come to do it
            raise EncoderError(_CLOSED)
        future: Future[T] = Future()
        self._jobs.put((job, future))
        return future

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, future = item
            if not future.set_running_or_notify_cancel():
                continue  # whoever asked has gone: the view is not computed
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
            self.doing = ""
        if self._loaded:
            LOADS.unload(self.encoder)


def _short_of_memory(error: Exception, what: str) -> str:
    """What to say if that was it; else nothing."""
    if not out_of_memory(error):
        return ""
    return (
        f"this device has not enough memory for {what}; end other programs, or take a smaller picture, a smaller type "
        "of number (--dtype) or fewer threads (--threads)"
    )


def _ms_since(begun: float) -> float:
    return (time.perf_counter() - begun) * 1e3
