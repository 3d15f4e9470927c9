"""Training batches for nano's codec, from the features and questions of its run.

Promises that batch `step` depends only on the seed and the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from tofc_lab.codec.feature_noise import FeatureNoise
from tofc_lab.codec.places import Pool, View
from tofc_lab.codec.source import Project
from tofc_lab.nano import features
from tofc_lab.nano.answerer import Answerer, ask, load, merging, visual_input
from tofc_lab.nano.batches import Batches
from tofc_lab.nano.features import CachedPicture
from tofc_lab.nano.packing import Batch, Packer


@dataclass(frozen=True, kw_only=True)
class NanoMix:
    """How batches are made."""

    batch: int = 24  # pictures of a batch
    turns: int = 8  # questions about each picture
    merged: float = 0.4  # share of batches with merged features
    easy: float = 0.12  # share of batches from easy-VQA
    large: float = 0.06  # share of batches with larger pictures


def pool(pictures: Sequence[CachedPicture], project: Project, seed: int, share_merged: float = 0.5) -> Pool:
    """Return the features of pictures; in a share of them, every view is merged to a random number of features."""
    rng = np.random.default_rng([seed, 37])
    features: list[NDArray[np.float16]] = []
    views: list[View] = []
    for one in pictures:
        share = float(rng.uniform(0.15, 1.0)) if rng.random() < share_merged else 1.0
        for side, view in zip(one.sides, one.views(), strict=True):
            kept, cells, _ = merging(share=share, project=project)(view)
            features.append(kept.astype(np.float16))
            views.append((side, cells))
    return Pool.of(torch.from_numpy(np.concatenate(features)), views)


class CodecBatches(Batches[tuple[Batch, bool]]):
    """Endless batches from step `first` on, each with whether it has unmerged 336 px pictures."""

    def __init__(
        self, pictures: dict[str, Sequence[CachedPicture]], packer: Packer, mix: NanoMix, seed: int, first: int
    ) -> None:
        self.pictures, self.packer, self.mix, self.seed, self.first = pictures, packer, mix, seed, first

    def draw(self, step: int) -> tuple[Batch, bool]:
        """Return batch `step`, which depends only on `(seed, step)`."""
        mix, rng = self.mix, np.random.default_rng([self.seed, 29, step])
        draw, kind, size = rng.random(), "world", mix.batch
        if draw < mix.easy:
            kind = "easy"
        elif draw < mix.easy + mix.large:
            kind, size = "large", max(1, mix.batch // 4)
        share = float(rng.uniform(0.15, 1.0)) if rng.random() < mix.merged else 1.0
        chosen = [self.pictures[kind][i] for i in rng.integers(len(self.pictures[kind]), size=size)]
        shown = [visual_input(one, merging(share=share)) for one in chosen]
        asked = [ask(rng, one, mix.turns) for one in chosen]
        return self.packer.pack(shown, asked, independent=True), kind == "world" and share == 1.0


class NanoSource:
    """A `tofc_lab.codec.source.Source` from a run's features and its decoder."""

    def __init__(
        self,
        answerer: Answerer,
        tokenizer: PreTrainedTokenizerFast,
        world: Sequence[CachedPicture],
        large: Sequence[CachedPicture] = (),
        easy: Sequence[CachedPicture] = (),
        *,
        mix: NanoMix | None = None,
        seed: int = 0,
        autocast: bool = True,
    ) -> None:
        self.answerer = answerer.requires_grad_(False).eval()
        self.pictures = {"world": world, "large": large, "easy": easy}
        self.packer, self.mix, self.seed, self.autocast = Packer(tokenizer), mix or NanoMix(), seed, autocast
        self.projector = answerer.projector.weight.detach()
        self.extra = nn.Module()  # nothing: the grid embedding was trained with the decoder

    @classmethod
    def load(cls, run: Path, *, seed: int) -> Self:
        """Load the decoder and the features of a run."""
        pictures = features.load_training(run)
        answerer, tokenizer = load(run, pictures.world[0].features.shape[1])
        return cls(answerer, tokenizer, pictures.world, pictures.large, pictures.easy, seed=seed)

    def sample(self) -> Tensor:
        """Return features [T, D] of whole pictures, to initialise the transform."""
        rng = np.random.default_rng([self.seed, 23])
        world, easy = self.pictures["world"], self.pictures["easy"]
        chosen = [world[i].features for i in rng.permutation(len(world))[:400]]
        chosen += [easy[i].features for i in rng.permutation(len(easy))[:40]]
        return torch.from_numpy(np.concatenate(chosen).astype(np.float32))

    def pool(self, project: Project) -> Pool:
        """Return features for the context model, half of the pictures merged."""
        return pool([one for pictures in self.pictures.values() for one in pictures], project, self.seed)

    def batches(self, first: int) -> Iterator[tuple[Batch, bool]]:
        """Yield batches from step `first` on, without end; with each, whether it counts for the target bits."""
        return CodecBatches(self.pictures, self.packer, self.mix, self.seed, first).ahead()

    def noisy(self, index: int, noise: FeatureNoise, batch: int = 24, turns: int = 14) -> Batch:
        """Return batch `index` of whole pictures, with noise on the features."""
        rng = np.random.default_rng([self.seed, 31, index])
        world = self.pictures["world"]
        chosen = [world[i] for i in rng.integers(len(world), size=batch)]
        shown = [visual_input(one, merging()) for one in chosen]
        shown = [replace(one, features=noise.apply(rng, one.features, one.views)) for one in shown]
        return self.packer.pack(shown, [ask(rng, one, turns) for one in chosen], independent=True)

    def wanted(self, batch: Batch) -> Tensor:
        """Return the logits [answer tokens, vocabulary] of the uncompressed features."""
        return self.logits(batch, batch.features)

    def logits(self, batch: Batch, features: Tensor) -> Tensor:
        """Return the logits [answer tokens, vocabulary] with decoded `features` [T, D]."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            found: Tensor = self.answerer(batch, features)
        return found.float()
