"""The interface of a codec's training data: features, and a frozen decoder whose answers must not change.

Promises nothing about pictures, prompts or where features come from; `tofc_lab.nano.source` and
`tofc_lab.distillation.source` implement it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tofc.codec.merge import merge
from tofc_lab.codec.feature_noise import FeatureNoise
from tofc_lab.codec.places import Places, Pool

#: features [N, D] → the vectors between which merging measures distances
Project = Callable[[NDArray[np.float32]], NDArray[np.floating]]


def merged_by(
    view: NDArray[np.float32], keep: int, project: Project | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Merge features [N, D], by distances after `project`; return the clusters' means [keep, D] and their cells."""
    found = merge(view if project is None or keep == len(view) else project(view), keep)
    return found.means(view), found.centres.astype(np.int64)


class Batch(Protocol):
    """Questions about pictures, ready for the decoder."""

    @property
    def features(self) -> Tensor:
        """[T, D]"""

    @property
    def places(self) -> Places:
        """Coding stage and neighbours of the features"""


B = TypeVar("B", bound=Batch)


class Source(Protocol[B]):
    """Training data and the frozen decoder.

    `projector` is the weight [H, D] applied to features; `extra` is trained along with the codec.
    """

    @property
    def projector(self) -> Tensor: ...

    @property
    def extra(self) -> nn.Module: ...

    def sample(self) -> Tensor:
        """Return features [T, D] of whole pictures, to initialise the transform."""

    def pool(self, project: Project) -> Pool:
        """Return features for the context model, some views merged by distances after `project`."""

    def batches(self, first: int) -> Iterator[tuple[B, bool]]:
        """Yield batches from step `first` on, without end; with each, whether it counts for the target bits."""

    def noisy(self, index: int, noise: FeatureNoise) -> B:
        """Return batch `index` of whole pictures with many questions and noise on the features."""

    def wanted(self, batch: B) -> Tensor:
        """Return the logits [answer tokens, vocabulary] of the uncompressed features."""

    def logits(self, batch: B, features: Tensor) -> Tensor:
        """Return the logits [answer tokens, vocabulary] with `features` [T, D] instead of the batch's own."""
