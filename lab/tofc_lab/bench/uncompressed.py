"""The same questions from uncompressed features: a device and a server that pass features by reference in one process.

    picture ─ views ─ tower ─→ features [N, D] ─ store ─→ projector ─ + grid embedding ─→ rows [N, H]
                               packet: a number in the store

Promises the session, the prompt and the decoder of packets, and every feature in float32. Leaves what a codec would do
out. It works only where both halves share a `FeatureStore`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from device_client.compute import AS_STORED, Compute
from device_client.encoder import TowerEncoder
from device_client.picture import Encoded
from device_client.rate import DEFAULT
from edge_server.assemble import Assembled, PictureRows, SplitAssembler
from edge_server.backend import Backend
from edge_server.engine.base import Prompt
from edge_server.handshake import KnownCodec
from tofc.errors import CorruptPacketError
from tofc.model import feature_codecs
from tofc.model.checkpoint import Checkpoint
from tofc.model.projector import Projector
from tofc.model.prompt import Turn
from tofc.model.views import views

NAME, ID = "uncompressed", "uncompressed"  # of the codec that stands for them
STORE_BYTES = 1 << 29

Features = NDArray[np.float32]


class FeatureStore:
    """The features of the latest views, by number."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: OrderedDict[int, Features] = OrderedDict()
        self._count = self._bytes = 0

    def put(self, features: Features) -> bytes:
        """Keep the features of a view; return the packet that stands for them."""
        with self._lock:
            self._count += 1
            self._kept[self._count] = features
            self._bytes += features.nbytes
            while self._bytes > STORE_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
            return self._count.to_bytes(8)

    def get(self, packet: bytes) -> Features:
        """Return the features that a packet stands for. Raises CorruptPacketError if they are kept no more."""
        with self._lock:
            features = self._kept.get(int.from_bytes(packet))
        if features is None:
            raise CorruptPacketError("these features are kept no more; ask again", reason="PACKET_INVALID")
        return features


class UncompressedEncoder(TowerEncoder):
    """The device's half."""

    def __init__(self, checkpoint: Checkpoint, store: FeatureStore, compute: Compute = AS_STORED) -> None:
        super().__init__(checkpoint, DEFAULT, compute)
        self.setting = NAME
        self._store = store

    @classmethod
    def of(cls, model: Path, store: FeatureStore, compute: Compute) -> UncompressedEncoder:
        """Open a whole checkpoint; reads no weights."""
        return cls(Checkpoint.open(model, side="device", feature_codec=feature_codecs.DEFAULT), store, compute)

    @property
    def codec_id(self) -> str:
        return ID

    def encode(self, image: Image.Image) -> Iterator[Encoded]:
        tower, _ = self._loaded()
        for index, view in enumerate(views(image, self.rule)):
            yield Encoded(index=index, packet=self._store.put(tower.encode(view.pixels[None])[0]))


class UncompressedAssembler:
    """The server's half: an `Assembler` that also takes the packets of `UncompressedEncoder`."""

    def __init__(self, assembler: SplitAssembler, projector: Projector, store: FeatureStore) -> None:
        self._assembler = assembler
        self._projector = projector
        self._store = store

    def views(self, packet: bytes, *, codec_id: str, count: int, last: bool) -> Sequence[NDArray[np.float32]]:
        """See `Assembler`."""
        if codec_id != ID:
            return self._assembler.views(packet, codec_id=codec_id, count=count, last=last)
        features = self._store.get(packet)
        cells = len(features)
        return [self._assembler.add_grid(self._projector.project(features), round(cells**0.5), np.arange(cells))]

    def prompt(self, turns: Sequence[Turn], pictures: Sequence[PictureRows], max_rows: int) -> Assembled:
        """See `Assembler`."""
        return self._assembler.prompt(turns, pictures, max_rows)

    def continued(self, prompt: Prompt, ids: Sequence[int]) -> Prompt:
        """See `Assembler`."""
        return self._assembler.continued(prompt, ids)

    def beginning(self, turns: Sequence[Turn], pictures: Sequence[PictureRows], max_rows: int) -> Prompt | None:
        """See `Assembler`."""
        return self._assembler.beginning(turns, pictures, max_rows)


def with_uncompressed(backend: Backend, model: Path, store: FeatureStore) -> Backend:
    """Return a backend that also takes uncompressed features from this process."""
    assert isinstance(backend.assembler, SplitAssembler)
    projector = Projector(Checkpoint.open(model, "server"))
    known = KnownCodec(name=NAME, codec_id=ID, entropy_model="none")
    return replace(
        backend,
        codecs=(*backend.codecs, known),
        assembler=UncompressedAssembler(backend.assembler, projector, store),
    )
