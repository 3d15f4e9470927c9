"""One way of sending, measured: over a kind and split of pictures, once, kept on disk.

    pictures ─ tower ─ features ─ way of sending ─ features ─ decoder ─ answers ─→ outcomes

Promises the same pictures, questions and decoder for everything. A run that stops goes on where it was;
features are kept for each tower, outcomes for each model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch

from lab.evaluate import score
from lab.nano import features
from lab.nano.answerer import Reduce, merging
from lab.nano.features import Cached, Kind, Sizes
from lab.nano.packing import Packer
from lab.nano.unpack import answerer_of
from lab.rate_distortion.images import ImageFile, tower_id
from lab.rate_distortion.outcomes import Outcomes
from lab.report import encoder
from lab.world.assets import Split
from shared.model.checkpoint import Checkpoint
from shared.model.prompt import load_tokenizer
from shared.model.tower import Tower

Progress = Callable[[Iterable[int], int], Iterable[int]]


class Bench:
    """A checkpoint, pictures of the given sizes, and a folder for what has been computed."""

    def __init__(self, model: Path, assets: Path, run: Path, sizes: Sizes, progress: Progress) -> None:
        self.checkpoint = Checkpoint.open(model)
        self.assets, self.sizes, self._progress = assets, sizes, progress
        tower = Tower(self.checkpoint)
        self._encode = encoder(tower)
        self._features = run / "features" / tower_id(tower)
        self._outcomes = run / "outcomes" / self.checkpoint.model_id
        self.answerer = answerer_of(self.checkpoint)
        self.packer = Packer(load_tokenizer(self.checkpoint))
        self._loaded: dict[tuple[Kind, Split], list[Cached]] = {}

    def pictures(self, kind: Kind, split: Split, file: ImageFile | None = None) -> list[Cached]:
        """Features of the pictures themselves, or as the tower sees them through an image file."""
        if file is None and (kind, split) in self._loaded:
            return self._loaded[kind, split]
        out = self._features / ("pictures" if file is None else file.folder)
        encode = self._encode if file is None else file.through(self._encode)
        count = self.sizes[kind, split]
        features.compute(self.assets, out, encode, kind=kind, split=split, count=count, progress=self._progress)
        found = features.load(out, kind, split, count)
        if file is None:
            self._loaded[kind, split] = found
        return found

    def reduced(
        self, name: str, make: Callable[[], Reduce], kind: Kind, split: Split, identity: bytes = b""
    ) -> Outcomes:
        """Answers from features that went through what ``make`` gives; ``identity`` changes with what it does."""
        return self._kept(f"{name}-{_digest(identity)}", kind, split, lambda: (self.pictures(kind, split), make()))

    def file(self, file: ImageFile, kind: Kind, split: Split) -> Outcomes:
        """Answers when the server's tower sees an image file."""
        return self._kept(file.folder, kind, split, lambda: (self.pictures(kind, split, file), merging()))

    def _kept(
        self, name: str, kind: Kind, split: Split, prepare: Callable[[], tuple[list[Cached], Reduce]]
    ) -> Outcomes:
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


def _digest(identity: bytes) -> str:
    return hashlib.sha256(identity).hexdigest()[:8]
