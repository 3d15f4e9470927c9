"""All methods that send features, with all settings that are tried.

Leaves image files to `images` and `learned`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from tofc.codec.codec import Codec
from tofc_lab.nano.answerer import CROP_CELLS, Answerer, Reduce
from tofc_lab.nano.evaluate import coded
from tofc_lab.nano.features import CachedPicture
from tofc_lab.rate_distortion import codebooks, simple
from tofc_lab.rate_distortion.index_contexts import Context, CountContext, NetContext

MERGED = (36, 24, 16, 12)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a method.

    `make` returns the reduction to a number of features; `identity` changes whenever that gives other results.
    """

    name: str
    features: int  # of a view at most
    make: Callable[[int], Reduce]
    identity: bytes = b""

    def reduce(self, crop: int | None = None) -> Reduce:
        """Return the reduction of a view, to at most `crop` features if it is a crop."""
        whole = self.make(self.features)
        if crop is None or crop >= self.features:
            return whole
        of_crop = self.make(crop)
        return lambda view: (of_crop if len(view) == CROP_CELLS else whole)(view)


def packets(codec: Codec, identity: bytes) -> list[Setting]:
    """Return the settings of a codec whose packets are counted: every number of features at every quality."""
    # without the codec's own limit for crops, which is a setting here
    codec = Codec(replace(codec.weights, config=replace(codec.config, crop_features=None)))
    return [
        Setting(
            name=f"{n} features, quality {quality}",
            features=n,
            make=lambda n, quality=quality: coded(codec, n, quality),  # type: ignore[misc]
            identity=identity,
        )
        for n, quality in product(MERGED, range(codec.config.qualities))
    ]


def others(pictures: list[CachedPicture], answerer: Answerer, identity: bytes) -> dict[str, list[Setting]]:
    """Return the settings of the codecs that ours is compared with, fitted to the features of training `pictures`."""
    x = np.concatenate([one.features for one in pictures]).astype(np.float32)
    projector = answerer.projector.weight.detach().double().numpy()
    values, vectors = np.linalg.eigh(projector.T @ projector)
    through = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    found: dict[str, list[Setting]] = {}
    for name, measure in (("PCA", np.eye(x.shape[1])), ("PCA behind the projector", through)):
        found[f"{name} + scalar quantisation"] = [
            Setting(
                name=f"{count} components, step {step:g}, {n} features",
                features=n,
                make=lambda n, count=count, step=step, measure=measure: simple.Components.fit(  # type: ignore[misc]
                    x, measure, count, step
                ).reduce(n),
                identity=identity,
            )
            for n, count, step in product((36, 24), (32, 64), (0.7, 1.0, 1.4, 2.0, 2.8, 4.0))
        ]
    found["int8 + Zstandard"] = [
        Setting(
            name=f"{bits} bits, {n} features",
            features=n,
            make=lambda n, bits=bits: simple.levels(x, bits, n),  # type: ignore[misc]
            identity=identity,
        )
        for n, bits in product((36, 12), (1, 2, 3, 4, 8))
    ]
    found["top n in half precision"] = [
        Setting(
            name=f"{n} features",
            features=n,
            make=lambda n: simple.outstanding(x, projector, n),
            identity=identity,
        )
        for n in (36, 24, 12)
    ]

    found |= _codebooks(x, projector, round(len(pictures[0].features) ** 0.5), identity)
    return found


def _codebooks(
    x: NDArray[np.float32], projector: NDArray[np.float64], side: int, identity: bytes
) -> dict[str, list[Setting]]:
    """Return the settings of vector quantisation, with one index per feature."""

    @cache
    def book(size: int, weight: float) -> codebooks.Codebook:
        return codebooks.Codebook.fit(x, projector, size, weight)

    @cache
    def context(kind: type[CountContext | NetContext], size: int, weight: float) -> Context:
        fitted = book(size, weight)
        return kind.fit(fitted.index(x).reshape(-1, side, side), -fitted.bits)

    def settings(
        sizes: Sequence[int], weights: Sequence[float], kind: type[CountContext | NetContext] | None = None
    ) -> list[Setting]:
        return [
            Setting(
                name=f"{size} codewords, λ {weight:g}, {n} features",
                features=n,
                make=lambda n, size=size, weight=weight: book(size, weight).reduce(  # type: ignore[misc]
                    n,
                    context(kind, size, weight) if kind else None,  # type: ignore[arg-type]
                ),
                identity=identity,
            )
            for n, size, weight in product((36,) if kind else (36, 16), sizes, weights)
        ]

    sizes, weights = (1024, 4096), (0.03, 0.1, 0.3, 0.6)
    return {
        "VQ, indices of fixed length": settings((64, 256, 1024, 4096), (0.0,)),
        "ECVQ, static table": settings(sizes, weights),
        "ECVQ, counts of neighbours": settings(sizes, weights, CountContext),
        "ECVQ, net over neighbours": settings(sizes, weights, NetContext),
    }
