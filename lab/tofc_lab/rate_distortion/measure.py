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

import numpy as np
import torch
from PIL import Image

from tofc.model.checkpoint import Checkpoint
from tofc.model.feature_codecs import DEFAULT
from tofc.model.prompt import load_tokenizer
from tofc.model.tower import Tower
from tofc.packet_limits import VIEWS_PER_PACKET
from tofc_lab.nano import features
from tofc_lab.nano.answerer import Answerer, Reduce, merging
from tofc_lab.nano.evaluate import questions_about, score
from tofc_lab.nano.features import CachedPicture, Kind, Sizes, TowerOutput
from tofc_lab.nano.packing import Packer, QuestionAnswer
from tofc_lab.nano.report import shipped_encoder
from tofc_lab.nano.unpack import answerer_of
from tofc_lab.progress import Progress
from tofc_lab.rate_distortion import prefilter
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
    _training: Path | None
    turns: int = 10  # questions about a picture at most
    _loaded: dict[tuple[Kind, Split], list[CachedPicture]] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        model: Path,
        assets: Path,
        run: Path,
        sizes: Sizes,
        progress: Progress,
        training: Path | None = None,
        feature_codec: str = DEFAULT,
    ) -> Self:
        """Load the networks of a whole checkpoint; `run` is the folder for features and outcomes.

        `training` is the folder of a training run, whose features vector quantisers are fitted to; without it they are
        fitted to the training pictures in `sizes`.
        """
        checkpoint = Checkpoint.open(model, feature_codec=feature_codec)
        tower = Tower(checkpoint)
        return cls(
            checkpoint=checkpoint,
            assets=assets,
            sizes=sizes,
            progress=progress,
            answerer=answerer_of(checkpoint),
            packer=Packer(load_tokenizer(checkpoint)),
            _encode=shipped_encoder(tower, checkpoint.config),
            _features=run / "features" / _tower_id(tower),
            _outcomes=run / "outcomes" / checkpoint.model_id,
            _training=training,
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

    def training(self) -> list[CachedPicture]:
        """Return the features of training pictures of all kinds."""
        if self._training is not None:
            found = features.load_training(self._training)
            return [*found.world, *found.large, *found.easy]
        return [one for kind, split in self.sizes if split == "train" for one in self.pictures(kind, split)]

    def training_identity(self) -> bytes:
        """Return what changes whenever the features of `training` do."""
        if self._training is None:
            sizes = {key: count for key, count in self.sizes.items() if key[1] == "train"}
            return f"{self._features.name} {sizes}".encode()
        return f"{features.folder(self._training).name} {features.TRAINING_SIZES}".encode()

    def reduced(
        self, name: str, make: Callable[[], Reduce], kind: Kind, split: Split, identity: bytes = b""
    ) -> Outcomes:
        """Measure answers from features that `make()` reduces; `identity` must change whenever its results do."""
        if kind == "large":  # whose views share packets
            identity += f"{VIEWS_PER_PACKET} views".encode()
        return self._measured(f"{name}-{_digest(identity)}", kind, split, lambda: (self.pictures(kind, split), make()))

    def file(self, file: ImageCodecSetting, kind: Kind, split: Split) -> Outcomes:
        """Measure answers from image files, which the server decodes and encodes with its tower."""
        return self._measured(file.folder, kind, split, lambda: (self.pictures(kind, split, file), merging()))

    def few(self, pictures: int, turns: int) -> Benchmark:
        """Return the same benchmark with fewer pictures and questions: the first ones."""
        return replace(
            self, sizes={key: min(count, pictures) for key, count in self.sizes.items()}, turns=turns, _loaded={}
        )

    def prefiltered(self, file: ImageCodecSetting, kind: Kind, split: Split) -> Outcomes:
        """Measure answers from image files, one for each question, that keep only what the question is about."""

        def measure() -> Outcomes:
            encode = file.through(self._encode)
            shown: list[CachedPicture] = []
            asked: list[list[QuestionAnswer]] = []
            owner: list[int] = []
            for index, one in enumerate(self.pictures(kind, split)):
                if one.scene is None:
                    raise ValueError(f"pictures of {kind} have no scenes: a prefilter cannot know what to keep")
                image, _ = features.picture(self.assets, kind, split, 0, index)
                for question in questions_about(index, one, self.turns):
                    found = encode(prefilter.flatten(image, prefilter.kept(one.scene, question)))
                    shown.append(replace(one, features=np.concatenate(found.views).astype(np.float16), size=found.size))
                    asked.append([question])
                    owner.append(index)
            return prefilter.by_picture(self._score(kind, shown, merging(), asked), owner)

        return self._kept(f"prefiltered-{file.folder}", kind, split, measure)

    def _measured(
        self, name: str, kind: Kind, split: Split, prepare: Callable[[], tuple[list[CachedPicture], Reduce]]
    ) -> Outcomes:
        """Measure the way that `prepare` returns: pictures and what is done to their features."""
        return self._kept(name, kind, split, lambda: self._score(kind, *prepare()))

    def _score(
        self,
        kind: Kind,
        pictures: list[CachedPicture],
        reduce: Reduce,
        chosen: list[list[QuestionAnswer]] | None = None,
    ) -> Outcomes:
        batch = 5 if kind == "large" else 25
        with torch.inference_mode():
            outcomes = score(self.answerer, self.packer, pictures, reduce, turns=self.turns, batch=batch, chosen=chosen)
        if pictures[0].size:
            outcomes = [replace(one, size=pictures[one.picture].size) for one in outcomes]
        return Outcomes.of(outcomes)

    def _kept(self, name: str, kind: Kind, split: Split, measure: Callable[[], Outcomes]) -> Outcomes:
        """Load the outcomes that are kept under `name`; if there are none, measure and keep them."""
        turns = "" if self.turns == 10 else f"-{self.turns} questions"
        path = self._outcomes / f"{kind}-{split}-{self.sizes[kind, split]}{turns}" / f"{name}.npz"
        if not path.exists():
            measure().save(path)
        return Outcomes.load(path)


def _tower_id(tower: Tower) -> str:
    """Return twelve hexadecimal digits that change with the tower's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(tower.model.state_dict().items()):
        digest.update(name.encode() + value.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def _digest(identity: bytes) -> str:
    return hashlib.sha256(identity).hexdigest()[:8]
