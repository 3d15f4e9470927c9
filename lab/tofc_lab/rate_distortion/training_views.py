"""The views that the vector quantisers are fitted to: of world, large and easy-VQA pictures, as ours is.

    pictures of all kinds ─ views, by the side of their grid ─ principal components behind the projector ─→ points

Promises the same order of features everywhere: the views of one side after those of the next smaller one, each in
raster order. Leaves loading the pictures to `measure`, fitting to `codebooks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tofc_lab.nano.features import CachedPicture

COMPONENTS = 64  # of the projected features: distances within them
CHUNK = 500  # views in single precision at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """Where distances are measured: principal components of the features' projections, all that the decoder sees."""

    mean: NDArray[np.float32]  # [D]
    basis: NDArray[np.float32]  # [C, D]: from a feature, less the mean

    def points(self, features: NDArray[np.float32]) -> Tensor:
        """Return the points [T, C] of features [T, D]."""
        return torch.from_numpy((features - self.mean) @ self.basis.T)


class TrainingViews:
    """Views in half precision, by the side of their grid."""

    def __init__(self, pictures: Iterable[CachedPicture]) -> None:
        self.views: dict[int, list[NDArray[np.float16]]] = {}
        for one in pictures:
            ends = np.cumsum([side * side for side in one.sides])
            for side, view in zip(one.sides, np.split(one.features, ends[:-1]), strict=True):
                self.views.setdefault(side, []).append(view)
        self.sides = sorted(self.views)

    def chunks(self) -> Iterator[NDArray[np.float32]]:
        """Yield all features [T, D] in parts."""
        for side in self.sides:
            for at in range(0, len(self.views[side]), CHUNK):
                yield np.concatenate(self.views[side][at : at + CHUNK]).astype(np.float32)

    @property
    def counts(self) -> dict[int, int]:
        """Numbers of views by the side of their grid, in order."""
        return {side: len(self.views[side]) for side in self.sides}

    def space(self, projector: NDArray[np.float64]) -> Space:
        """Compute the principal components of the features' projections by `projector` [H, D]."""
        count, width = 0, projector.shape[1]
        total, square = np.zeros(width), np.zeros((width, width))
        for x in self.chunks():
            count += len(x)
            total += x.sum(0, dtype=np.float64)
            square += x.T @ x
        mean = total / count
        _, vectors = np.linalg.eigh(projector @ (square / count - np.outer(mean, mean)) @ projector.T)
        basis = (vectors[:, ::-1][:, :COMPONENTS].T @ projector).astype(np.float32)
        return Space(mean=np.asarray(mean, np.float32), basis=basis)


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """Training views, their space and their points: everything that codebooks are fitted to."""

    views: TrainingViews
    space: Space
    points: Tensor  # [T, C]

    @classmethod
    def of(cls, pictures: Iterable[CachedPicture], projector: NDArray[np.float64]) -> Self:
        """Project the features of `pictures` by `projector` [H, D]."""
        views = TrainingViews(pictures)
        space = views.space(projector)
        return cls(views=views, space=space, points=torch.cat([space.points(x) for x in views.chunks()]))
