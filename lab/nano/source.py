"""nano's pictures and questions as the codec's training sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from lab.codec.places import Pool, View
from lab.codec.source import Project
from lab.nano.answerer import Answerer, ask, merging, picture
from lab.nano.batches import Batches
from lab.nano.features import Cached
from lab.nano.packing import Batch, Packer
from lab.nano.rough import Coarsen


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What a batch is made of."""

    batch: int = 24  # pictures
    turns: int = 8  # questions about each
    merged: float = 0.4  # of the batches
    easy: float = 0.12
    large: float = 0.06


def pool(pictures: Sequence[Cached], project: Project, seed: int, share_merged: float = 0.5) -> Pool:
    """The features of pictures; in a share of these every view is merged to a random number."""
    rng = np.random.default_rng([seed, 37])
    features: list[NDArray[np.float16]] = []
    views: list[View] = []
    for one in pictures:
        share = float(rng.uniform(0.15, 1.0)) if rng.random() < share_merged else 1.0
        for side, view in zip(one.sides, one.views(), strict=True):
            kept, cells, _ = merging(share=share, project=project)(view)
            features.append(kept.astype(np.float16))
            views.append((side, cells))
    return Pool(torch.from_numpy(np.concatenate(features)), views)


class Questions(Batches[tuple[Batch, bool]]):
    """Endless batches and whether they are unmerged 336 px pictures, from step ``first`` on."""

    def __init__(self, pictures: dict[str, Sequence[Cached]], packer: Packer, mix: Mix, seed: int, first: int) -> None:
        self.pictures, self.packer, self.mix, self.seed, self.first = pictures, packer, mix, seed, first

    def draw(self, step: int) -> tuple[Batch, bool]:
        """Batch ``step``, which depends on ``(seed, step)`` alone."""
        mix, rng = self.mix, np.random.default_rng([self.seed, 29, step])
        draw, kind, size = rng.random(), "world", mix.batch
        if draw < mix.easy:
            kind = "easy"
        elif draw < mix.easy + mix.large:
            kind, size = "large", max(1, mix.batch // 4)
        share = float(rng.uniform(0.15, 1.0)) if rng.random() < mix.merged else 1.0
        chosen = [self.pictures[kind][i] for i in rng.integers(len(self.pictures[kind]), size=size)]
        shown = [picture(one, merging(share=share)) for one in chosen]
        asked = [ask(rng, one, mix.turns) for one in chosen]
        return self.packer.pack(shown, asked, independent=True), kind == "world" and share == 1.0


class NanoSource:
    """A ``lab.codec.source.Source`` of a run's features and its decoder."""

    def __init__(
        self,
        answerer: Answerer,
        tokenizer: PreTrainedTokenizerFast,
        world: Sequence[Cached],
        large: Sequence[Cached] = (),
        easy: Sequence[Cached] = (),
        *,
        mix: Mix | None = None,
        seed: int = 0,
        autocast: bool = True,
    ) -> None:
        self.answerer = answerer.requires_grad_(False).eval()
        self.pictures = {"world": world, "large": large, "easy": easy}
        self.packer, self.mix, self.seed, self.autocast = Packer(tokenizer), mix or Mix(), seed, autocast
        self.projector = answerer.projector.weight.detach()
        self.extra = nn.Module()  # the grid embedding was trained with the decoder

    def sample(self) -> Tensor:
        rng = np.random.default_rng([self.seed, 23])
        world, easy = self.pictures["world"], self.pictures["easy"]
        chosen = [world[i].features for i in rng.permutation(len(world))[:400]]
        chosen += [easy[i].features for i in rng.permutation(len(easy))[:40]]
        return torch.from_numpy(np.concatenate(chosen).astype(np.float32))

    def pool(self, project: Project) -> Pool:
        return pool([one for pictures in self.pictures.values() for one in pictures], project, self.seed)

    def batches(self, first: int) -> Iterator[tuple[Batch, bool]]:
        return Questions(self.pictures, self.packer, self.mix, self.seed, first).ahead()

    def coarse(self, index: int, rough: Coarsen, batch: int = 24, turns: int = 14) -> Batch:
        rng = np.random.default_rng([self.seed, 31, index])
        world = self.pictures["world"]
        chosen = [world[i] for i in rng.integers(len(world), size=batch)]
        shown = [picture(one, merging()) for one in chosen]
        shown = [replace(one, features=rough.draw(rng, one.features, one.views)) for one in shown]
        return self.packer.pack(shown, [ask(rng, one, turns) for one in chosen], independent=True)

    def wanted(self, batch: Batch) -> Tensor:
        return self.logits(batch, batch.features)

    def logits(self, batch: Batch, features: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            found: Tensor = self.answerer(batch, features)
        return found.float()
