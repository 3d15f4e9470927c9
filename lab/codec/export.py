"""From a trained model to the codec's two files: integer weights and stored tables.

Promises that the exported h_s is the trained one, rounded. The tables hold what was counted
on training features, smoothed by the trained distributions; they are the last thing computed in floats.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import nn

from lab.codec.model import BIT_PRICE, FRACTION, SCALES, SHIFT1, SHIFT2, CodecModel, scale_of
from shared.codec.codec import Codec
from shared.codec.tables import table_from_probabilities
from shared.codec.weights import CodecConfig, CodecWeights, Rate

RESIDUAL_RANGE = 31
#: (features, quality) by ascending bytes: on or next to the hull on validation pictures (`tofc-lab rate-distortion`)
RATES: tuple[Rate, ...] = ((12, 1), (12, 2), (12, 3), (16, 3), (16, 4), (24, 5), (None, 6), (None, 7))
PRESETS = {"low": 2, "medium": 4, "high": 5, "max": 7}
PRESET = "high"
SMOOTHING = 200.0  # counts that the trained distribution is worth against what was seen


def _rates(qualities: int) -> dict[str, Any]:
    """nano's; a codec of other qualities has each of them, unmerged, until its hull is measured."""
    if qualities == 8:
        return {"rates": RATES, "presets": PRESETS, "preset": PRESET}
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
    centroids: Iterable[NDArray[np.float32]],
) -> CodecWeights:
    """The codec's weights; ``centroids`` [n, D] of training pictures fill the tables.

    ``grid_embedding`` is [side², ``hidden``] of each grid side.
    """
    model = model.cpu()
    w1, b1, w2, b2 = (t.numpy() for t in model.h_s.integers())
    first, last = model.h_a
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    qualities = model.qualities
    config = CodecConfig(
        feature_dim=model.mean.shape[0],
        components=model.components,
        hyper=model.hyper,
        hyper_hidden=first.out_features,
        qualities=qualities,
        **_rates(qualities),
        hidden=hidden,
        shift1=SHIFT1,
        shift2=SHIFT2,
        residual_range=RESIDUAL_RANGE,
        hyper_range=model.hyper_range,
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
        ha_w1=first.weight.numpy(),
        ha_b1=(first.bias + model.h_a_bias).numpy(),
        ha_w2=last.weight.numpy(),
        ha_b2=last.bias.numpy(),
        hs_w1=w1[None].astype(np.int8),
        hs_b1=b1[:, None].astype(np.int32),
        hs_w2=w2[None].astype(np.int8),
        hs_b2=b2[:, None].astype(np.int32),
        z_tables=table_from_probabilities(np.ones((qualities, model.hyper, 2 * model.hyper_range + 1))),
        y_tables=table_from_probabilities(gaussian),
        grid_embedding=grid_embedding,
    )
    z_seen = np.full((qualities, model.hyper, 2 * model.hyper_range + 1), 0.5)
    y_seen = gaussian * SMOOTHING
    codec = Codec(draft)
    for x in centroids:
        for level in range(qualities):
            symbols = codec.symbols(x, level)
            np.add.at(y_seen, (symbols.table, symbols.residuals + RESIDUAL_RANGE), 1)
            np.add.at(z_seen[level], (np.arange(model.hyper)[None, :], symbols.z + model.hyper_range), 1)
    tensors = {
        name: getattr(draft, name) for name in draft.__dataclass_fields__ if name not in {"y_tables", "z_tables"}
    }
    return CodecWeights(**tensors, y_tables=table_from_probabilities(y_seen), z_tables=table_from_probabilities(z_seen))
