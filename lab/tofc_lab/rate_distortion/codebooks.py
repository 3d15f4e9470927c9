"""Vector quantisation with indices: one of a codebook, as in AlignedVQ (arXiv 2411.05961), or one of each of several.

    feature ─ projector ─ point ─ nearest codeword, by distance + λ · bits ─→ index ─→ the codewords' features, summed
                                       │   next stage ↑
                                       └─ what is left of the point

- VQ: k-means, every index at the same length (log2 K bits);
- ECVQ: entropy-constrained (Chou, Lookabaugh and Gray 1989), which gives frequent codewords short indices. Their bits
  come from a static table, or from what was decoded before (`index_contexts`);
- residual VQ: each stage quantises what the stages before it left (Juang and Gray 1982), entropy-constrained as well;
- product VQ: each stage has components of its own (Jégou, Douze and Schmid 2011), entropy-constrained as well.

Promises sizes that favour them, as in `simple`: ideal bits, a header of two bytes, n and positions as for ours, and
nothing for codebooks, tables and nets. Distances are measured behind the projector: the decoder sees nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tofc.codec.merge import merge
from tofc_lab.codec.index.codebooks import nearest, refit
from tofc_lab.nano.answerer import Reduce
from tofc_lab.nano.costs import IdealCost
from tofc_lab.rate_distortion.index_contexts import Context
from tofc_lab.rate_distortion.simple import place_bits
from tofc_lab.rate_distortion.training_views import COMPONENTS, Space, Training
from tofc_lab.resume import save_arrays

ROUNDS = 12  # of k-means on a sample, and again with the price of bits
LAST_ROUNDS = 3  # on everything
SAMPLE = 300_000  # vectors
RECIPE = repr((COMPONENTS, ROUNDS, LAST_ROUNDS, SAMPLE)).encode()


@dataclass(frozen=True, kw_only=True)
class Design:
    """Sizes of the codebooks, how they share the components, and λ."""

    sizes: tuple[int, ...]  # codewords of each stage at most
    product: bool = False  # the stages share the components, by power, in equal parts; else each has all that is left
    weight: float = 0.0  # λ: mean squared lengths of a point per bit; 0: plain k-means, indices of fixed length

    def __str__(self) -> str:
        count = f"{len(self.sizes)} × {self.sizes[0]}" if len(self.sizes) > 1 else f"{self.sizes[0]}"
        return f"{count} codewords, λ {self.weight:g}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """K codewords, and what their indices cost."""

    codewords: NDArray[np.float32]  # [K, C], zero outside the stage's components
    features: NDArray[np.float32]  # [K, D]: added to what the stages before it give
    bits: NDArray[np.float32]  # [K] of an index, without its neighbours


@dataclass(frozen=True, kw_only=True, eq=False)
class Codebooks:
    """One stage or several, and the indices of the training features."""

    space: Space
    stages: tuple[Stage, ...]
    price: float  # λ, squared distance per bit
    trained: NDArray[np.int64]  # [T, S], ordered as in `TrainingViews`
    counts: dict[int, int]  # of training views, by the side of their grid

    @classmethod
    def fit(cls, training: Training, design: Design) -> Self:
        """Fit one stage after the other."""
        points, count = training.points, len(design.sizes)
        width = points.shape[1] // count
        price = design.weight * float(points.square().sum(1).mean())
        left = points.clone()
        fitted: list[tuple[NDArray[np.float32], NDArray[np.float64]]] = []
        indices = np.zeros((len(points), count), np.int64)
        for at, size in enumerate(design.sizes):
            own = slice(at * width, (at + 1) * width if at + 1 < count else None) if design.product else slice(None)
            fewer, bits = _fit(left[:, own].contiguous(), size, price, at)
            whole = torch.zeros(len(fewer), points.shape[1])
            whole[:, own] = fewer
            index = nearest(left, whole, bits, price)[0]
            left -= whole[index]
            indices[:, at] = index.numpy()
            counts = np.bincount(indices[:, at], minlength=len(whole)).astype(np.float64) + 1
            fitted.append((whole.numpy(), counts))
        features = _features(training, indices, [seen for _, seen in fitted])
        stages = tuple(
            Stage(
                codewords=codewords,
                features=added,
                bits=(-np.log2(seen / seen.sum()) if design.weight else np.full(len(seen), log2(len(seen)))).astype(
                    np.float32
                ),
            )
            for (codewords, seen), added in zip(fitted, features, strict=True)
        )
        return cls(space=training.space, stages=stages, price=price, trained=indices, counts=training.views.counts)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load what `save` wrote."""
        with np.load(path) as stored:
            count = stored["trained"].shape[1]
            parts = ("codewords", "features", "bits")
            return cls(
                space=Space(mean=stored["mean"], basis=stored["basis"]),
                stages=tuple(Stage(**{part: stored[f"{part}{at}"] for part in parts}) for at in range(count)),
                price=float(stored["price"]),
                trained=stored["trained"].astype(np.int64),
                counts=dict(stored["counts"].tolist()),
            )

    def save(self, path: Path) -> None:
        """Write the file, complete or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        stages = {f"{name}{at}": value for at, one in enumerate(self.stages) for name, value in vars(one).items()}
        arrays: dict[str, Any] = {"trained": self.trained.astype(np.uint16), "counts": list(self.counts.items())}
        save_arrays(path, price=self.price, **vars(self.space), **stages, **arrays)

    def index(self, features: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the indices [n, S] of features [n, D], each stage's chosen by distance and the table's bits."""
        left = self.space.points(features)
        found = []
        for stage in self.stages:
            codewords = torch.from_numpy(stage.codewords)
            found.append(nearest(left, codewords, torch.from_numpy(stage.bits), self.price)[0])
            left = left - codewords[found[-1]]
        return torch.stack(found, 1).numpy()

    def grids(self) -> list[NDArray[np.int64]]:
        """Return the indices of the training views as grids [V, side, side, S], an array for each side."""
        ends = np.cumsum([side * side * count for side, count in self.counts.items()])
        parts = np.split(self.trained, ends[:-1])
        return [part.reshape(-1, side, side, len(self.stages)) for side, part in zip(self.counts, parts, strict=True)]

    def decode(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the features [n, D] of indices [n, S]."""
        parts = (stage.features[index[:, at]] for at, stage in enumerate(self.stages))
        return sum(parts, self.space.mean[None])

    def reduce(self, n: int, context: Context | None = None) -> Reduce:
        """Return the function that merges a view to at most n features and sends the indices of each.

        `context` tells the bits of views that are not merged; both sides know from n whether a view is.
        """

        def reduce(view: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64], IdealCost]:
            merged = merge(view, min(n, len(view)))
            index = self.index(merged.centroids)
            side = round(len(view) ** 0.5)
            if context is not None and len(index) == len(view):
                bits = context.bits(index.reshape(side, side, -1))
            else:
                bits = sum(float(stage.bits[index[:, at]].sum()) for at, stage in enumerate(self.stages))
            cost = IdealCost(bits + place_bits(len(index), len(view)))
            return self.decode(index), merged.centres.astype(np.int64), cost

        return reduce


def _fit(points: Tensor, size: int, price: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return at most `size` codewords [K, C] and the bits [K] of an index: k-means, then with a price of bits."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(points))[:SAMPLE])
    sample = points[order]
    codewords = sample[:size]
    bits = torch.zeros(len(codewords))
    rounds = [(sample, 0.0)] * ROUNDS + [(sample, price)] * (ROUNDS if price else 0) + [(points, price)] * LAST_ROUNDS
    for some, priced in rounds:
        codewords, bits, _ = refit(some, codewords, bits, priced)
    return codewords, bits if price else torch.zeros(len(codewords))


def _features(
    training: Training, indices: NDArray[np.int64], counts: list[NDArray[np.float64]]
) -> list[NDArray[np.float32]]:
    """Return each stage's features [K, D]: the means over its cells of what the stages before it leave of a feature."""
    found: list[NDArray[np.float32]] = []
    for at, frequency in enumerate(counts):
        total, begin = torch.zeros(len(frequency), len(training.space.mean)), 0
        for x in training.views.chunks():
            index = indices[begin : begin + len(x)]
            left = x - sum((one[index[:, before]] for before, one in enumerate(found)), training.space.mean)
            total.index_add_(0, torch.from_numpy(index[:, at]), torch.from_numpy(left))
            begin += len(x)
        found.append((total.numpy() / np.maximum(frequency - 1, 1)[:, None]).astype(np.float32))
    return found
