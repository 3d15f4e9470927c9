"""Writes the golden codecs and packets: `python tests/codec/golden/write.py`, from the repository's root.

Run it when the format changes, after raising the format of codec.json, or to make the packets cover more.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tofc.codec import Codec
from tofc.codec.codec import Parsed
from tofc.codec.context.weights import ContextWeights
from tofc.codec.fake import fake_features, fake_weights
from tofc.codec.index.fake import fake_index_weights
from tofc.codec.integer_net import ACTIVATION_BITS, WEIGHT_BITS
from tofc.codec.selective_hyperprior.fake import fake_selective_hyperprior
from tofc.codec.selective_hyperprior.weights import SelectiveHyperpriorWeights
from tofc.codec.weights import CodecWeights

HERE = Path(__file__).parent
#: N, n, factor of the features: with a large one, some residuals do not fit the tables
VIEWS = (
    (36, 36, 1),
    (36, 12, 1),
    (36, 1, 1),
    (36, 35, 1),
    (16, 16, 1),
    (16, 5, 20),
    (25, 25, 1),
    (25, 9, 1),
    (4, 4, 1),
    (4, 3, 1),
    (4, 1, 1),
    (1, 1, 1),
    (36, 20, 20),
    (49, 49, 1),
    (64, 64, 1),
    (81, 81, 1),
    (144, 100, 3),
    (169, 169, 1),
    (256, 40, 3),
    (100, 100, 1),
    (64, 64, 5),
)
#: more views for the index codec, which has a table for each cell of these grids
PLACE_VIEWS = ((16, 16, 1), (16, 16, 5), (36, 36, 5), (16, 14, 1), (36, 30, 1), (36, 36, 1))
#: packets of several views, by the numbers of their views above: equal ones, and others in between
SEVERAL = ((0, 0), (5, 4, 1, 17), (15, 15, 14, 0, 6, 9), (19, 11))
PUBLISHED, TRANSFORMED, INDEX = 14, 5, 69  # seeds


def codecs() -> dict[str, CodecWeights]:
    """Make small codecs of every entropy model."""
    return context_codecs() | selective_hyperprior_codecs() | index_codecs()


def context_codecs() -> dict[str, CodecWeights]:
    """Make a small codec with all defaults, and one with qualities, slices and a smaller neighbourhood.

    Means and scales vary widely and every hidden unit is active somewhere, so that the packets detect a wrong number in
    the context model or a table, as `tests/codec/test_golden_damage.py` checks. With most seeds they would miss some.
    """
    plain = fake_weights(D=12, M=6, H=4, seed=240, slices=1, hidden=5)
    rich = fake_weights(D=12, M=7, H=4, seed=352, Q=4, slices=4, hidden=6)
    near = replace(rich, config=replace(rich.config, reach=1, fraction=2), around_w=rich.around_w[:, : 8 * 4].copy())
    one = np.int32(1 << ACTIVATION_BITS + WEIGHT_BITS)
    awake = replace(near, own_b=near.own_b + one * 3 // 2, mid_b=near.mid_b + one * 3 // 2)
    made = {"one-quality": _strong(plain, means=4, scales=2), "four-qualities": _strong(awake, means=6, scales=2)}
    return {name: replace(weights, grid_embedding={}) for name, weights in made.items()}


def _strong(weights: ContextWeights, means: int, scales: int) -> ContextWeights:
    """Make predictions vary more for the same hidden units."""
    out = weights.out_w.astype(int) * np.array([means, scales])[:, None, None]
    return replace(weights, out_w=out.clip(-32768, 32767).astype(np.int16))


def selective_hyperprior_codecs() -> dict[str, CodecWeights]:
    """Make a codec as published, of two qualities, and one with a transform.

    Every expert is used, and means and scales vary widely, so that the packets detect a wrong number or table.
    """
    plain = fake_selective_hyperprior(D=12, H=4, seed=PUBLISHED, Q=2, experts=2, hyper=4, hidden=3)
    rich = fake_selective_hyperprior(D=12, M=6, H=4, seed=TRANSFORMED, experts=2, hyper=3, hidden=3)
    made = {"published": _strong_experts(plain), "published-with-transform": _strong_experts(rich)}
    return {name: replace(weights, grid_embedding={}) for name, weights in made.items()}


def _strong_experts(weights: SelectiveHyperpriorWeights) -> SelectiveHyperpriorWeights:
    """Make predictions finer, so half as many scales, vary more for the same hidden units, and those active more."""
    out = weights.h_s_w2.astype(int) * np.array([6, 2])[:, None, None]
    one = np.int32(1 << ACTIVATION_BITS + WEIGHT_BITS)
    return replace(
        weights,
        config=replace(weights.config, fraction=2),
        h_s_w2=out.clip(-127, 127).astype(np.int8),
        h_s_b1=weights.h_s_b1 + one * 2,
        h_s_b2=weights.h_s_b2 // np.array([[1], [2]], np.int32) + np.array([[0], [2 << 15]], np.int32),
    )


def index_codecs() -> dict[str, CodecWeights]:
    """Make a codec of three stages and three qualities.

    Bits cost nothing, so that unlikely indices are chosen too. Logits are coarse, so that the table of their weights is
    short and every entry matters, and vary widely.
    """
    weights = fake_index_weights(D=12, M=5, H=4, seed=INDEX, K=(12, 6, 4), Q=3, E=2, hidden=4)
    config = replace(weights.config, logit_bits=1, logit_range=40)
    one = np.int32(1 << ACTIVATION_BITS + WEIGHT_BITS)
    made = replace(
        weights,
        config=config,
        bit_price=np.zeros_like(weights.bit_price),
        first_b=weights.first_b + one * 2,
        mid_b=weights.mid_b + one * 3,
        out_b=weights.out_b * 4,
        code_b=weights.code_b + (1 << 17),
        exp2=np.rint(2.0 ** (20 - np.arange(config.logit_range) / 2)).astype(np.uint32),
        place={side: table + np.where(table < 0, -one, one) for side, table in weights.place.items()},
    )
    return {"index": replace(made, grid_embedding={})}


def main() -> None:
    for name, weights in codecs().items():
        weights.save(HERE / name)
        entries = [json.dumps(packet) for packet in packets(weights)]
        (HERE / name / "packets.json").write_text("[\n" + ",\n".join(entries) + "\n]\n", encoding="utf-8")
        entries = [json.dumps(packet) for packet in packets_of_several(weights)]
        (HERE / name / "several.json").write_text("[\n" + ",\n".join(entries) + "\n]\n", encoding="utf-8")


def packets(weights: CodecWeights) -> list[dict[str, Any]]:
    """Return the packets of all views, and what they decode to."""
    codec, found = Codec(weights), []
    views = VIEWS + PLACE_VIEWS * (weights.config.entropy_model == "index")
    for index, (total, n, factor) in enumerate(views):
        features = fake_features(weights, total, seed=index) * np.float32(factor)
        data = codec.encode(features, n, index % weights.config.qualities)
        found.append({"packet": data.hex(), **content(codec.parse(data))})
    return found


def packets_of_several(weights: CodecWeights) -> list[dict[str, Any]]:
    """Return the packets of several views, and what each view decodes to."""
    codec, found = Codec(weights), []
    for chosen in SEVERAL:
        views = []
        for seed, index in enumerate(chosen):
            total, n, factor = VIEWS[index]
            features = fake_features(weights, total, seed=seed) * np.float32(factor)
            views.append(codec.code(features, n, (seed // 2) % weights.config.qualities))
        data = codec.write(views)
        found.append({"packet": data.hex(), "views": [content(view) for view in codec.parse_views(data)]})
    return found


def content(view: Parsed) -> dict[str, Any]:
    """Return what a view decodes to."""
    return {
        "grid": view.grid, "cells": view.positions.tolist(), "quality": view.quality, "q": view.q.tolist(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
