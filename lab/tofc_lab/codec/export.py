"""Export of a trained model to the codec's two files: integer weights and probability tables.

Promises that the exported context model is the trained one, rounded and clipped to integers. The tables hold symbol
counts of training features, smoothed by the trained distributions; from there on the runtime uses integers only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from tofc.codec.codec import Codec
from tofc.codec.config import Rate
from tofc.codec.context.config import ContextConfig
from tofc.codec.context.weights import ContextWeights
from tofc.codec.tables import table_from_probabilities
from tofc_lab.codec.context import CHANNELS
from tofc_lab.codec.model import BIT_PRICE, SCALES, CodecModel, scale_of
from tofc_lab.codec.places import REACH
from tofc_lab.codec.residual_probabilities import FRACTION, SMOOTHING, residual_probabilities

RESIDUAL_RANGE = 31
#: (features, quality) by ascending bytes: on or next to the hull on validation pictures (`tofc-lab rate-distortion`)
RATES: tuple[Rate, ...] = (
    (12, 1), (12, 3), (12, 4), (12, 5), (16, 5), (16, 6), (16, 7), (24, 7), (None, 7)
)  # fmt: skip
PRESETS = {"low": 1, "medium": 3, "high": 5, "max": 8}
PRESET = "high"
CROP_FEATURES = 4


def _rates(qualities: int) -> dict[str, Any]:
    """Return rates and presets: nano's for 8 qualities; for another number every quality, unmerged.

    `tofc-lab train-codec` replaces both by those on its own hull.
    """
    if qualities == 8:
        return {"rates": RATES, "presets": PRESETS, "preset": PRESET, "crop_features": CROP_FEATURES}
    return {
        "rates": tuple((None, quality) for quality in range(qualities)),
        "presets": {"low": 0, "high": qualities - 1},
        "preset": "high",
    }


@torch.no_grad()
def export(
    model: CodecModel,
    grid_embedding: dict[int, NDArray[np.float16]],
    hidden: int,
    views: Iterable[tuple[NDArray[np.float32], float]],
) -> ContextWeights:
    """Return the codec's weights, with tables counted on `views`.

    `views` are features [N, D] of training pictures, each with the share of them that merging keeps.
    `grid_embedding` is [side², `hidden`] by grid side.
    """
    model = model.cpu()
    qualities = model.qualities
    config = ContextConfig(
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
    gaussian = residual_probabilities(
        norm.cdf, scale_of(torch.arange(SCALES, dtype=torch.float64)).numpy(), RESIDUAL_RANGE
    )
    draft = ContextWeights(
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
    counts = gaussian * SMOOTHING
    codec = Codec(draft)
    for view, share in views:
        merged = codec.merge(view, max(min(2, len(view)), round(share * len(view))))
        for quality in range(qualities):
            symbols = codec.entropy_model.quantise(
                merged.centroids.astype(np.float64), round(len(view) ** 0.5), merged.centres, quality
            )
            np.add.at(counts, (symbols.table, symbols.residual + RESIDUAL_RANGE), 1)
    return replace(draft, y_tables=table_from_probabilities(counts))
