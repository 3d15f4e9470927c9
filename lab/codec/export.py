"""From a trained model to the codec's two files: integer weights and stored tables.

Promises that the exported context model is the trained one, rounded and clipped to its integers. The tables hold
what was counted on training features, smoothed by the trained distributions; they are the last thing computed in
floats.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from lab.codec.context import CHANNELS, FRACTION
from lab.codec.model import BIT_PRICE, SCALES, CodecModel, scale_of
from lab.codec.places import REACH
from shared.codec.codec import Codec
from shared.codec.tables import table_from_probabilities
from shared.codec.weights import CodecConfig, CodecWeights, Rate

RESIDUAL_RANGE = 31
#: (features, quality) by ascending bytes: on or next to the hull on validation pictures (`tofc-lab rate-distortion`)
RATES: tuple[Rate, ...] = (
    (12, 1), (12, 3), (12, 4), (12, 5), (16, 5), (16, 6), (16, 7), (24, 7), (None, 7)
)  # fmt: skip
PRESETS = {"low": 1, "medium": 3, "high": 5, "max": 8}
PRESET = "high"
CROP_FEATURES = 4
SMOOTHING = 200.0  # counts that the trained distribution is worth against what was seen


def _rates(qualities: int) -> dict[str, Any]:
    """nano's; a codec of other qualities has each of them, unmerged, until its hull is measured."""
    if qualities == 8:
        return {"rates": RATES, "presets": PRESETS, "preset": PRESET, "crop_features": CROP_FEATURES}
    return {
        "rates": tuple((None, quality) for quality in range(qualities)),
        "presets": {"low": 0, "high": qualities - 1},
        "preset": "high",
    }


def _gaussian_tables() -> NDArray[np.float64]:
    """Probabilities [SCALES · 2^FRACTION, 2 R + 1] of whole residuals under each scale and what is left of a mean."""
    scales = scale_of(torch.arange(SCALES, dtype=torch.float64)).numpy()[:, None, None]
    left = np.arange(1 << FRACTION)[:, None] / (1 << FRACTION) - 0.5  # a mean is rounded to the nearest whole step
    edges = np.arange(-RESIDUAL_RANGE, RESIDUAL_RANGE + 2) - 0.5
    cdf = norm.cdf((edges - left) / scales)
    cdf[..., 0], cdf[..., -1] = 0.0, 1.0
    tables: NDArray[np.float64] = np.diff(cdf, axis=-1).reshape(SCALES << FRACTION, -1)
    return tables


@torch.no_grad()
def export(
    model: CodecModel,
    grid_embedding: dict[int, NDArray[np.float16]],
    hidden: int,
    views: Iterable[tuple[NDArray[np.float32], float]],
) -> CodecWeights:
    """The codec's weights; ``views`` [N, D] of training pictures, each merged to a share of it, fill the tables.

    ``grid_embedding`` is [side², ``hidden``] of each grid side.
    """
    model = model.cpu()
    qualities = model.qualities
    config = CodecConfig(
        feature_dim=model.mean.shape[0],
        components=model.components,
        slices=tuple(last for _, last in model.context.spans),
        channels=CHANNELS,
        context_hidden=model.context.mid_w.shape[-1],
        reach=REACH,
        qualities=qualities,
        **_rates(qualities),
        hidden=hidden,
        residual_range=RESIDUAL_RANGE,
        tables=SCALES << FRACTION,
        fraction=FRACTION,
    )
    gaussian = _gaussian_tables()
    draft = CodecWeights(
        config=config,
        mean=model.mean.numpy(),
        analysis=(model.analysis / model.spread).numpy(),
        step=model.log_step.exp().numpy(),
        bit_price=np.full(qualities, BIT_PRICE, np.float32),
        synthesis=(model.synthesis * model.spread).numpy(),
        **{name: tensor.numpy() for name, tensor in model.context.integers().items()},
        y_tables=table_from_probabilities(gaussian),
        grid_embedding=grid_embedding,
    )
    seen = gaussian * SMOOTHING
    codec = Codec(draft)
    for view, share in views:
        merged = codec.merge(view, max(min(2, len(view)), round(share * len(view))))
        for level in range(qualities):
            symbols = codec.symbols(merged.centroids, round(len(view) ** 0.5), merged.centres, level)
            np.add.at(seen, (symbols.table, symbols.residual + RESIDUAL_RANGE), 1)
    return replace(draft, y_tables=table_from_probabilities(seen))
