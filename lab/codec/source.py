"""What a codec is trained on: features, and the frozen decoder whose answers about them shall stay.

Promises nothing about pictures, prompts or where features come from; ``lab.nano.source`` and
``lab.matching.source`` know them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lab.codec.places import Places, Pool
from lab.nano.rough import Coarsen
from shared.codec.merge import merge

#: features [N, D] → what tells them apart when they are merged
Project = Callable[[NDArray[np.float32]], NDArray[np.floating]]


def merged_by(
    view: NDArray[np.float32], keep: int, project: Project | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features [N, D] → plain means of clusters [keep, D], which ``project`` tells apart, and the cells they are of."""
    found = merge(view if project is None or keep == len(view) else project(view), keep)
    return found.means(view), found.centres.astype(np.int64)


class Batch(Protocol):
    """Questions about pictures, ready for the decoder."""

    @property
    def features(self) -> Tensor:
        """[T, D]"""

    @property
    def places(self) -> Places:
        """Where they lie."""


B = TypeVar("B", bound=Batch)


class Source(Protocol[B]):
    """``projector`` is the weight [H, D] behind the features; ``extra`` is trained along with the codec."""

    @property
    def projector(self) -> Tensor: ...

    @property
    def extra(self) -> nn.Module: ...

    def sample(self) -> Tensor:
        """Features [T, D] of whole pictures, to begin with."""

    def pool(self, project: Project) -> Pool:
        """Features for the context model; in some of the views they are merged by what ``project`` makes of them."""

    def batches(self, first: int) -> Iterator[tuple[B, bool]]:
        """Endless batches from step ``first`` on; with each, whether it counts for the wanted bits a feature."""

    def coarse(self, index: int, rough: Coarsen) -> B:
        """Batch ``index`` of whole pictures with many questions, its features made coarse."""

    def wanted(self, batch: B) -> Tensor:
        """Logits [answer tokens, vocabulary] of the uncompressed features."""

    def logits(self, batch: B, features: Tensor) -> Tensor:
        """Logits [answer tokens, vocabulary] with ``features`` [T, D] instead of the batch's own."""
