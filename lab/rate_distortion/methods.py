"""Every way to send features that is compared, with every setting of it that is tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from lab.codec.sensitivity import sensitivity
from lab.evaluate import coded
from lab.nano.answerer import CROP_CELLS, Answerer, Reduce
from lab.nano.features import Cached
from lab.nano.packing import Packer
from lab.nano.rough import Rough
from lab.nano.source import NanoSource
from lab.rate_distortion import published, simple
from shared.codec.codec import Codec

MERGED = (36, 24, 16, 12)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One point of a method. ``identity`` changes with what ``make`` makes of a number of features."""

    name: str
    features: int  # of a view at most
    make: Callable[[int], Reduce]
    identity: bytes = b""

    def reduce(self, crop: int | None = None) -> Reduce:
        """With at most ``crop`` features of a crop."""
        whole = self.make(self.features)
        if crop is None or crop >= self.features:
            return whole
        of_crop = self.make(crop)
        return lambda view: (of_crop if len(view) == CROP_CELLS else whole)(view)


def ours(codec: Codec, identity: bytes) -> list[Setting]:
    """Every number of features at every quality."""

    codec = Codec(replace(codec.weights, config=replace(codec.config, crop_features=None)))  # which is tried here
    return [
        Setting(
            name=f"{n} features, quality {quality}",
            features=n,
            make=lambda n, quality=quality: coded(codec, n, quality),  # type: ignore[misc]
            identity=identity,
        )
        for n, quality in product(MERGED, range(codec.config.qualities))
    ]


def others(
    pictures: list[Cached], answerer: Answerer, packer: Packer, run: Path, identity: bytes
) -> dict[str, list[Setting]]:
    """The codecs that ours is compared with, fitted to the features of training ``pictures``."""
    x = np.concatenate([one.features for one in pictures]).astype(np.float32)
    projector = answerer.projector.weight.detach().double().numpy()
    seen = projector.T @ projector
    values, vectors = np.linalg.eigh(seen)
    through = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    found: dict[str, list[Setting]] = {}
    for name, measure in (("PCA", np.eye(x.shape[1])), ("PCA behind the projector", through)):
        found[f"{name} + scalar quantisation"] = [
            Setting(
                name=f"{count} components, step {step:g}, {n} features",
                features=n,
                make=lambda n, count=count, step=step, measure=measure: simple.Components(  # type: ignore[misc]
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
    worth = np.zeros(0)

    def model(step: float) -> published.Published:
        nonlocal worth
        path = run / "published" / f"{identity.hex()[:12]}-{step:g}.pt"
        if not len(worth):
            worth = np.diag(sensitivity(NanoSource(answerer, packer.tokenizer, pictures), Rough(x), batches=20).numpy())
        path.parent.mkdir(parents=True, exist_ok=True)
        return published.train(x, worth, step, path)

    found["TOFC as published"] = [
        Setting(
            name=f"step {step:g}, {n} features",
            features=n,
            make=lambda n, step=step: model(step).reduce(n),  # type: ignore[misc]
            identity=identity,
        )
        for step, n in product((2.0, 4.0, 8.0), (36, 24, 12))
    ]
    return found
