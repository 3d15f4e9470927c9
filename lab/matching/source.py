"""Pictures, questions and the teacher's answers as the codec's training sees them.

Promises that batch ``step`` depends on the seed, the step and the rank alone. What is to be matched are the answers
to the picture as the model's own projector would show it: unmerged, uncompressed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lab.codec.places import Places, Pool, View
from lab.codec.source import Project, merged_by
from lab.codec.team import Team
from lab.matching.pictures import Seen
from lab.matching.teacher import Answer, Packed, Shown, Teacher
from lab.nano.rough import Coarsen
from shared.model.prompt import Layout

Asked = Mapping[str, Sequence[tuple[str, Answer]]]  # by the picture's digest


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What a batch is made of."""

    batch: int = 4  # pictures
    turns: int = 8  # questions about each at most
    merged: float = 0.4  # of the batches
    pool: int = 2_500_000_000  # bytes of features, in half precision, that the context model is trained on
    sample: int = 15_000  # features that the transform begins with


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """The same questions about pictures as they are coded, and as they are."""

    coded: Packed
    whole: Packed

    @property
    def features(self) -> Tensor:
        return self.coded.features

    @property
    def places(self) -> Places:
        return self.coded.places


def show(seen: Seen, views: Sequence[NDArray[np.float32]], cells: Sequence[NDArray[np.int64]]) -> Shown:
    """Features of each view, and the cells that they are of."""
    *crops, whole = (len(view) for view in views)
    return Shown(
        features=np.concatenate(views),
        sides=np.repeat(seen.sides, [len(view) for view in views]),
        cells=np.concatenate(cells),
        layout=Layout(rows=seen.rows, columns=seen.columns, crops=tuple(crops), whole=whole),
    )


def merged(seen: Seen, share: float = 1.0, project: Project | None = None) -> Shown:
    """A picture with each view merged to a share of its features, which ``project`` tells apart."""
    found = [merged_by(view, max(min(2, len(view)), round(len(view) * share)), project) for view in seen.views()]
    return show(seen, [means for means, _ in found], [cells for _, cells in found])


class MatchingSource:
    """A ``lab.codec.source.Source``. ``grid`` [G, H] is the model's own; without one, one is learned."""

    def __init__(
        self,
        teacher: Teacher,
        seen: Sequence[Seen],
        asked: Asked,
        *,
        grid: Tensor | None,
        mix: Mix,
        seed: int,
        team: Team,
    ) -> None:
        self.teacher, self.seen, self.asked = teacher, seen, asked
        self.mix, self.seed, self.team = mix, seed, team
        self.projector = teacher.projector
        zeros = torch.zeros(teacher.cells, teacher.projector.shape[0], device=teacher.device)
        self.reference = zeros if grid is None else grid.to(teacher.device)
        self.extra = nn.ParameterDict()
        if grid is None:
            self.extra["grid"] = nn.Parameter(zeros.clone())
        if teacher.adapters is not None:
            self.extra.update(teacher.adapters.parameters())

    @property
    def grid(self) -> Tensor:
        """The table [G, H] for coded features."""
        found: Tensor = self.extra.get("grid", self.reference)
        return found

    def sample(self) -> Tensor:
        found = [one.features for one in self._gather(np.random.default_rng([self.seed, 23]), self.mix.sample, 0.0)]
        return torch.from_numpy(np.concatenate(found)[: self.mix.sample])

    def pool(self, project: Project) -> Pool:
        most = self.mix.pool // (2 * self.projector.shape[1])
        features, views = list[NDArray[np.float16]](), list[View]()
        for one in self._gather(np.random.default_rng([self.seed, 37]), most, 0.5, project):
            features.append(one.features.astype(np.float16))  # at once: together they are gigabytes
            views += one.views()
        return Pool(torch.from_numpy(np.concatenate(features)), views)

    def _gather(
        self, rng: np.random.Generator, most: int, share_merged: float, project: Project | None = None
    ) -> Iterator[Shown]:
        """Pictures at random until they have ``most`` features."""
        count = 0
        for index in rng.permutation(len(self.seen)):
            share = float(rng.uniform(0.15, 1.0)) if rng.random() < share_merged else 1.0
            found = merged(self.seen[index], share, project)
            count += len(found.features)
            yield found
            if count >= most:
                break

    def batches(self, first: int) -> Iterator[tuple[Batch, bool]]:
        return map(self._draw, count(first))

    def _draw(self, step: int) -> tuple[Batch, bool]:
        common = np.random.default_rng([self.seed, 29, step])  # the same for every member
        share = float(common.uniform(0.15, 1.0)) if common.random() < self.mix.merged else 1.0
        rng = np.random.default_rng([self.seed, 41, step, self.team.rank])
        chosen = [self.seen[i] for i in rng.integers(len(self.seen), size=self.mix.batch)]
        asked = [self._some(rng, one) for one in chosen]
        whole = self.teacher.pack([merged(one) for one in chosen], asked)
        coded = whole if share == 1.0 else self.teacher.pack([merged(one, share) for one in chosen], asked)
        return Batch(coded=coded, whole=whole), share == 1.0

    def coarse(self, index: int, rough: Coarsen) -> Batch:
        rng = np.random.default_rng([self.seed, 31, index])
        chosen = [self.seen[i] for i in rng.integers(len(self.seen), size=self.mix.batch)]
        shown = []
        for one in chosen:
            views = [np.arange(side * side) for side in one.sides]
            features = rough.draw(rng, np.concatenate(one.views()), list(zip(one.sides, views, strict=True)))
            ends = np.cumsum([len(cells) for cells in views])
            shown.append(show(one, np.split(features, ends[:-1]), views))
        packed = self.teacher.pack(shown, [self._some(rng, one) for one in chosen])
        return Batch(coded=packed, whole=packed)

    def _some(self, rng: np.random.Generator, seen: Seen) -> list[tuple[str, Answer]]:
        """As many of a picture's questions as a batch takes."""
        known = self.asked[seen.digest]
        return [known[i] for i in rng.permutation(len(known))[: self.mix.turns]]

    def wanted(self, batch: Batch) -> Tensor:
        with self.teacher.plain():
            return self.teacher.logits(batch.whole, batch.whole.features, self.reference)

    def logits(self, batch: Batch, features: Tensor) -> Tensor:
        return self.teacher.logits(batch.coded, features, self.grid)
