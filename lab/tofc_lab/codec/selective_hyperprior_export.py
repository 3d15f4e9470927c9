"""Export of trained models of TOFC's selective hyperprior to a codec's two files, one quality for each model.

Promises that the exported experts are the trained ones, rounded to integers. The tables hold symbol counts of training
features, smoothed by the trained distributions; from there on the runtime's decoder uses integers only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import laplace

from tofc.codec.codec import Codec
from tofc.codec.config import Rate
from tofc.codec.integer_net import ACTIVATION_BITS, WEIGHT_BITS
from tofc.codec.selective_hyperprior.config import SelectiveHyperpriorConfig
from tofc.codec.selective_hyperprior.hyper_synthesis import OUT_WEIGHT_BITS
from tofc.codec.selective_hyperprior.weights import SelectiveHyperpriorWeights
from tofc.codec.tables import table_from_probabilities
from tofc_lab.codec.residual_probabilities import FRACTION, SMOOTHING, residual_probabilities
from tofc_lab.codec.selective_hyperprior import HYPER_RANGE, SCALES, SelectiveHyperprior, scale_of

RESIDUAL_RANGE = 15


def _integers(model: SelectiveHyperprior) -> dict[str, NDArray[Any]]:
    """Return the integer tensors of a model's experts. The runtime rounds down, so halves are added here."""
    one, out_one = 1 << WEIGHT_BITS, 1 << OUT_WEIGHT_BITS + ACTIVATION_BITS
    w1, b1, w2, b2 = (getattr(model, f"h_s_{name}").detach().double().numpy() for name in ("w1", "b1", "w2", "b2"))
    half = np.full((2, 1), out_one // 2)  # rounds a scale to that of the nearest table
    half[0] += out_one >> FRACTION + 1  # rounds a mean to the nearest fraction of a step, then to the nearest step
    return {
        "h_s_w1": np.rint(w1 * one).clip(-32767, 32767).astype(np.int16),
        "h_s_b1": np.rint(b1 * (one << ACTIVATION_BITS) + one // 2).astype(np.int32),
        "h_s_w2": np.rint(w2 * (1 << OUT_WEIGHT_BITS)).clip(-128, 127).astype(np.int8),
        "h_s_b2": np.rint(b2 * out_one + half).astype(np.int32),
    }


def export(
    models: Sequence[SelectiveHyperprior],
    grid_embedding: dict[int, NDArray[Any]],
    hidden: int,
    views: Iterable[tuple[NDArray[np.float32], float]],
    *,
    rates: tuple[Rate, ...] | None = None,
    presets: dict[str, int] | None = None,
    preset: str | None = None,
    crop_features: int | None = None,
) -> SelectiveHyperpriorWeights:
    """Return the weights of a codec with a quality for each of `models`, with tables counted on `views`.

    `views` are features [N, D] of training pictures, each with the share of them that merging keeps. `grid_embedding`
    is [side², `hidden`] by grid side. Without `rates` and `presets` every quality is a rate, unmerged.
    """
    models = [model.cpu().eval() for model in models]
    first, qualities = models[0], len(models)
    experts, synthesis_hidden, hyper = first.h_s_w1.shape
    config = SelectiveHyperpriorConfig(
        feature_dim=len(first.mean),
        components=len(first.log_step),
        qualities=qualities,
        rates=rates or tuple((None, quality) for quality in range(qualities)),
        presets=presets or {"low": 0, "high": qualities - 1},
        preset=preset or "high",
        crop_features=crop_features,
        hidden=hidden,
        experts=experts,
        hyper=hyper,
        hyper_range=HYPER_RANGE,
        synthesis_hidden=synthesis_hidden,
        analysis_hidden=len(first.h_a[0].bias),  # type: ignore[arg-type]
        residual_range=RESIDUAL_RANGE,
        tables=SCALES << FRACTION,
        fraction=FRACTION,
    )
    tensors = [model.tensors() | _integers(model) for model in models]
    usage = np.stack([model.usage.double().numpy() for model in models])
    counted = {
        "expert_tables": usage / usage.sum(-1, keepdims=True) * SMOOTHING,
        "z_tables": np.stack([model.z_probabilities() for model in models]) * SMOOTHING,
        "y_tables": residual_probabilities(
            laplace.cdf, scale_of(torch.arange(SCALES, dtype=torch.float64)).numpy(), RESIDUAL_RANGE
        )
        * SMOOTHING,
    }
    transform = {"analysis": first.analysis.numpy(), "synthesis": first.synthesis.numpy()} if first.transformed else {}
    stacked: dict[str, Any] = {name: np.stack([one[name] for one in tensors]) for name in tensors[0]}
    draft = SelectiveHyperpriorWeights(
        config=config,
        mean=first.mean.numpy(),
        **transform,
        **stacked,
        **_tables(counted),
        grid_embedding=grid_embedding,
    )
    codec = Codec(draft)
    for view, share in views:
        merged = codec.merge(view, max(min(2, len(view)), round(share * len(view))))
        for quality in range(qualities):
            symbols = codec.symbols(merged.centroids, round(len(view) ** 0.5), merged.centres, quality)
            z = symbols.q[:, 1 : 1 + hyper] + HYPER_RANGE
            np.add.at(counted["expert_tables"][quality], symbols.q[:, 0], 1)
            np.add.at(counted["z_tables"][quality], (np.arange(hyper), z), 1)
            np.add.at(counted["y_tables"], (symbols.table, symbols.residual + RESIDUAL_RANGE), 1)  # type: ignore[attr-defined]
    return replace(draft, **_tables(counted))


def _tables(counted: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    return {name: table_from_probabilities(counts) for name, counts in counted.items()}
