"""Measurement of one way to send pictures, on one kind and split of them; results are kept on disk.

    pictures ─ tower ─ features ─ way of sending ─ features ─ decoder ─ answers ─→ outcomes

Promises the same pictures, questions and decoder for every way. An interrupted run is resumed: features are kept for
each tower, outcomes for each model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import torch
from PIL import Image

from tofc.model.checkpoint import Checkpoint
from tofc.model.feature_codecs import DEFAULT
from tofc.model.prompt import load_tokenizer
from tofc.model.tower import Tower
from tofc_lab.nano import features
from tofc_lab.nano.answerer import Answerer, Reduce, merging
from tofc_lab.nano.evaluate import score
from tofc_lab.nano.features import CachedPicture, Kind, Sizes, TowerOutput
from tofc_lab.nano.packing import Packer
from tofc_lab.nano.report import shipped_encoder
from tofc_lab.nano.unpack import answerer_of
from tofc_lab.progress import Progress
from tofc_lab.rate_distortion.images import ImageCodecSetting
from tofc_lab.rate_distortion.outcomes import Outcomes
from tofc_lab.world.assets import Split


@dataclass(frozen=True, kw_only=True, eq=False)
class Benchmark:
    """A checkpoint, how many pictures of each kind to use, and folders for features and outcomes; see `open`."""

    checkpoint: Checkpoint
    assets: Path
    sizes: Sizes
    progress: Progress
    answerer: Answerer
    packer: Packer
    _encode: Callable[[Image.Image], TowerOutput]
    _features: Path
    _outcomes: Path
    _loaded: dict[tuple[Kind, Split], list[CachedPicture]] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        model: Path,
        assets: Path,
        run: Path,
        sizes: Sizes,
        progress: Progress,
        feature_codec: str = DEFAULT,
    ) -> Self:
        """Load the networks of a whole checkpoint; `run` is the folder for features and outcomes."""
        checkpoint = Checkpoint.open(model, feature_codec=feature_codec)
        tower = Tower(checkpoint)
        return cls(
            checkpoint=checkpoint,
            assets=assets,
            sizes=sizes,
            progress=progress,
            answerer=answerer_of(checkpoint),
            packer=Packer(load_tokenizer(checkpoint)),
            _encode=shipped_encoder(tower),
            _features=run / "features" / _tower_id(tower),
            _outcomes=run / "outcomes" / checkpoint.model_id,
        )

    def pictures(self, kind: Kind, split: Split, file: ImageCodecSetting | None = None) -> list[CachedPicture]:
        """Return the features of the pictures, or of the pictures as decoded from an image file."""
        if file is None and (kind, split) in self._loaded:
            return self._loaded[kind, split]
        out = self._features / ("pictures" if file is None else file.folder)
        encode = self._encode if file is None else file.through(self._encode)
        count = self.sizes[kind, split]
        features.compute(self.assets, out, encode, kind=kind, split=split, count=count, progress=self.progress)
        found = features.load(out, kind, split, count)
        if file is None:
            self._loaded[kind, split] = found
        return found

    def reduced(
        self, name: str, make: Callable[[], Reduce], kind: Kind, split: Split, identity: bytes = b""
    ) -> Outcomes:
        """Measure answers from features that `make()` reduces; `identity` must change whenever its results do."""
        return self._measured(f"{name}-{_digest(identity)}", kind, split, lambda: (self.pictures(kind, split), make()))

    def file(self, file: ImageCodecSetting, kind: Kind, split: Split) -> Outcomes:
        """Measure answers from image files, which the server decodes and encodes with its tower."""
        return self._measured(file.folder, kind, split, lambda: (self.pictures(kind, split, file), merging()))

    def _measured(
        self, name: str, kind: Kind, split: Split, prepare: Callable[[], tuple[list[CachedPicture], Reduce]]
    ) -> Outcomes:
        """Load the outcomes that are kept under `name`; if there are none, measure and keep them."""
        path = self._outcomes / f"{kind}-{split}-{self.sizes[kind, split]}" / f"{name}.npz"
        if path.exists():
            return Outcomes.load(path)
        pictures, reduce = prepare()
        with torch.inference_mode():
            outcomes = score(self.answerer, self.packer, pictures, reduce, batch=5 if kind == "large" else 25)
        if pictures[0].size:
            outcomes = [replace(one, size=pictures[one.picture].size) for one in outcomes]
        found = Outcomes.of(outcomes)
        found.save(path)
        return found


def _tower_id(tower: Tower) -> str:
    """Return twelve hexadecimal digits that change with the tower's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(tower.model.state_dict().items()):
        digest.update(name.encode() + value.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def _digest(identity: bytes) -> str:
    return hashlib.sha256(identity).hexdigest()[:8]
