"""All methods that send features, with all settings that are tried, but for those that send indices.

Leaves indices to `index_methods`, image files to `images` and `learned`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from tofc.codec.codec import Codec
from tofc_lab.nano.answerer import Answerer
from tofc_lab.nano.evaluate import coded
from tofc_lab.nano.features import CachedPicture
from tofc_lab.rate_distortion import simple
from tofc_lab.rate_distortion.setting import Setting, setting_name

MERGED = (36, 24, 16, 12)


def packets(codec: Codec, identity: bytes) -> list[Setting]:
    """Return the settings of a codec whose packets are counted: every number of features at every quality."""
    return [
        Setting(
            name=setting_name(n, quality),
            features=n,
            make=lambda n, quality=quality: coded(codec, n, quality),  # type: ignore[misc]
            identity=identity,
        )
        for n, quality in product(MERGED, range(codec.config.qualities))
    ]


def others(
    pictures: Callable[[], list[CachedPicture]], answerer: Answerer, identity: bytes
) -> dict[str, list[Setting]]:
    """Return the settings of the codecs that ours is compared with.

    They are fitted to the features of training pictures, which `pictures` computes if one of them is measured.
    """

    @cache
    def x() -> NDArray[np.float32]:
        return np.concatenate([one.features for one in pictures()]).astype(np.float32)

    projector = answerer.projector.weight.detach().double().numpy()
    values, vectors = np.linalg.eigh(projector.T @ projector)
    through = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    found: dict[str, list[Setting]] = {}
    for name, measure in (("PCA", np.eye(projector.shape[1])), ("PCA behind the projector", through)):
        found[f"{name} + scalar quantisation"] = [
            Setting(
                name=f"{count} components, step {step:g}, {n} features",
                features=n,
                make=lambda n, count=count, step=step, measure=measure: simple.Components.fit(  # type: ignore[misc]
                    x(), measure, count, step
                ).reduce(n),
                identity=identity,
            )
            for n, count, step in product((36, 24), (32, 64), (0.7, 1.0, 1.4, 2.0, 2.8, 4.0))
        ]
    found["int8 + Zstandard"] = [
        Setting(
            name=f"{bits} bits, {n} features",
            features=n,
            make=lambda n, bits=bits: simple.levels(x(), bits, n),  # type: ignore[misc]
            identity=identity,
        )
        for n, bits in product((36, 12), (1, 2, 3, 4, 8))
    ]
    found["top n in half precision"] = [
        Setting(
            name=f"{n} features",
            features=n,
            make=lambda n: simple.outstanding(x(), projector, n),
            identity=identity,
        )
        for n in (36, 24, 12)
    ]

    return found
