"""Training batches for the codec, from pictures, questions and the teacher's answers.

Promises that batch `step` depends only on the seed, the step and the rank. The answers to preserve are those to the
unmerged, uncompressed picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tofc.model.prompt import PictureLayout
from tofc_lab.codec.distributed import ProcessGroup
from tofc_lab.codec.feature_noise import FeatureNoise
from tofc_lab.codec.places import Places, Pool, View
from tofc_lab.codec.source import Project, merged_by
from tofc_lab.distillation.pictures import StoredPicture
from tofc_lab.distillation.teacher import Answer, Packed, PictureInput, Teacher
from tofc_lab.prefetch import prefetched

Answers = Mapping[str, Sequence[tuple[str, Answer]]]  # by the picture's digest


@dataclass(frozen=True, kw_only=True)
class DistillationMix:
    """How batches are made."""

    batch: int = 4  # pictures of a batch
    turns: int = 8  # questions about each picture, at most
    merged: float = 0.4  # share of batches whose pictures are merged
    pool: int = 2_500_000_000  # bytes of half-precision features that the context model is trained on
    sample: int = 15_000  # features that the transform is initialised from


@dataclass(frozen=True, kw_only=True, eq=False)
class PairedBatch:
    """The same questions about pictures that are coded, merged or not (`coded`), and unmerged (`whole`)."""

    coded: Packed
    whole: Packed

    @property
    def features(self) -> Tensor:
        """The features [T, D] to code."""
        return self.coded.features

    @property
    def places(self) -> Places:
        """Their stages and neighbours."""
        return self.coded.places


def picture_input(
    picture: StoredPicture, views: Sequence[NDArray[np.float32]], cells: Sequence[NDArray[np.int64]]
) -> PictureInput:
    """Return the teacher's input, from the features of each view and their cells."""
    *crops, whole = (len(view) for view in views)
    return PictureInput(
        features=np.concatenate(views),
        sides=np.repeat(picture.sides, [len(view) for view in views]),
        cells=np.concatenate(cells),
        layout=PictureLayout(rows=picture.rows, columns=picture.columns, crops=tuple(crops), whole=whole),
    )


def merged(picture: StoredPicture, share: float = 1.0, project: Project | None = None) -> PictureInput:
    """Return a picture with each view merged to a share of its features, by distances after `project`."""
    found = [merged_by(view, max(min(2, len(view)), round(len(view) * share)), project) for view in picture.views()]
    return picture_input(picture, [means for means, _ in found], [cells for _, cells in found])


class DistillationSource:
    """A `tofc_lab.codec.source.Source`. `grid` [G, H] is the model's own grid table; if None, one is learned."""

    def __init__(
        self,
        teacher: Teacher,
        pictures: Sequence[StoredPicture],
        answers: Answers,
        *,
        grid: Tensor | None,
        mix: DistillationMix,
        seed: int,
        processes: ProcessGroup,
    ) -> None:
        self.teacher, self.pictures, self.answers = teacher, pictures, answers
        self.mix, self.seed, self.processes = mix, seed, processes
        self.projector = teacher.projector
        self.reference = teacher.no_grid() if grid is None else grid.to(teacher.device)
        self.extra = nn.ParameterDict()
        if grid is None:
            self.extra["grid"] = nn.Parameter(teacher.no_grid())
        if teacher.adapters is not None:
            self.extra.update(teacher.adapters.parameters())

    @property
    def grid(self) -> Tensor:
        """The grid table [G, H] for coded features."""
        found: Tensor = self.extra.get("grid", self.reference)
        return found

    def sample(self) -> Tensor:
        """Return features [T, D] of whole pictures, to initialise the transform."""
        found = [one.features for one in self._gather(np.random.default_rng([self.seed, 23]), self.mix.sample, 0.0)]
        return torch.from_numpy(np.concatenate(found)[: self.mix.sample])

    def pool(self, project: Project) -> Pool:
        """Return features for the context model, half of the pictures merged."""
        most = self.mix.pool // (2 * self.projector.shape[1])
        features, views = list[NDArray[np.float16]](), list[View]()
        for one in self._gather(np.random.default_rng([self.seed, 37]), most, 0.5, project):
            features.append(one.features.astype(np.float16))  # now and not at the end: all of them are gigabytes
            views += one.views()
        return Pool.of(torch.from_numpy(np.concatenate(features)), views)

    def _gather(
        self, rng: np.random.Generator, most: int, share_merged: float, project: Project | None = None
    ) -> Iterator[PictureInput]:
        """Yield pictures in random order until they have `most` features."""
        count = 0
        for index in rng.permutation(len(self.pictures)):
            share = float(rng.uniform(0.15, 1.0)) if rng.random() < share_merged else 1.0
            found = merged(self.pictures[index], share, project)
            count += len(found.features)
            yield found
            if count >= most:
                break

    def batches(self, first: int) -> Iterator[tuple[PairedBatch, bool]]:
        """Yield batches from step `first` on, without end; with each, whether its pictures are whole."""
        return prefetched(count(first), self._batch)

    def _batch(self, step: int) -> tuple[PairedBatch, bool]:
        common = np.random.default_rng([self.seed, 29, step])  # the same on every rank
        share = float(common.uniform(0.15, 1.0)) if common.random() < self.mix.merged else 1.0
        rng = np.random.default_rng([self.seed, 41, step, self.processes.rank])
        chosen = [self.pictures[i] for i in rng.integers(len(self.pictures), size=self.mix.batch)]
        asked = [self._draw_questions(rng, one) for one in chosen]
        whole = self.teacher.pack([merged(one) for one in chosen], asked)
        coded = whole if share == 1.0 else self.teacher.pack([merged(one, share) for one in chosen], asked)
        return PairedBatch(coded=coded, whole=whole), share == 1.0

    def noisy(self, index: int, noise: FeatureNoise) -> PairedBatch:
        """Return batch `index` of whole pictures, with noise on the features."""
        rng = np.random.default_rng([self.seed, 31, index])
        chosen = [self.pictures[i] for i in rng.integers(len(self.pictures), size=self.mix.batch)]
        inputs = []
        for one in chosen:
            views = [np.arange(side * side) for side in one.sides]
            features = noise.apply(rng, np.concatenate(one.views()), list(zip(one.sides, views, strict=True)))
            ends = np.cumsum([len(cells) for cells in views])
            inputs.append(picture_input(one, np.split(features, ends[:-1]), views))
        packed = self.teacher.pack(inputs, [self._draw_questions(rng, one) for one in chosen])
        return PairedBatch(coded=packed, whole=packed)

    def _draw_questions(self, rng: np.random.Generator, picture: StoredPicture) -> list[tuple[str, Answer]]:
        """Return up to `mix.turns` random questions about a picture, with their answers."""
        known = self.answers[picture.digest]
        return [known[i] for i in rng.permutation(len(known))[: self.mix.turns]]

    def wanted(self, batch: PairedBatch) -> Tensor:
        """Return the logits [answer tokens, vocabulary] of the model without codec and adapters."""
        with self.teacher.plain():
            return self.teacher.logits(batch.whole, batch.whole.features, self.reference)

    def logits(self, batch: PairedBatch, features: Tensor) -> Tensor:
        """Return the logits [answer tokens, vocabulary] with decoded `features` [T, D]."""
        return self.teacher.logits(batch.coded, features, self.grid)
