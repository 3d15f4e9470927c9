"""Writes the golden codecs and packets: ``python tests/codec/golden/write.py``, from the repository's root.

Run it only when the format changes, and raise the format of codec.json when it does.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from shared.codec import Codec
from shared.codec.fake import fake_features, fake_weights
from shared.codec.packet import read
from shared.codec.weights import CodecWeights

HERE = Path(__file__).parent
#: N, n, how loud: some residuals do not fit the tables
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
)


def codecs() -> dict[str, CodecWeights]:
    """One that is all defaults but small, and one with slices and near neighbours whose means and scales go far."""
    plain = fake_weights(D=12, M=6, H=4, seed=1, slices=1, hidden=5)
    rich = fake_weights(D=12, M=7, H=4, seed=4, Q=4, slices=4, hidden=6)
    strong = replace(
        rich,
        config=replace(rich.config, reach=1, fraction=2),
        around_w=rich.around_w[:, : 8 * 4].copy(),
        out_w=np.clip(rich.out_w.astype(int) * np.array([20, 8])[:, None, None], -32768, 32767).astype(np.int16),
    )
    return {name: replace(one, grid_embedding={}) for name, one in (("one-quality", plain), ("four-qualities", strong))}


def main() -> None:
    for name, weights in codecs().items():
        codec = Codec(weights)
        weights.save(HERE / name)
        packets = []
        for index, (total, n, loud) in enumerate(VIEWS):
            features = fake_features(weights, total, seed=index) * np.float32(loud)
            data = codec.encode(features, n, index % weights.config.qualities)
            limit, qualities = codec.payload.max_feature_bits, weights.config.qualities
            layout, payload = read(data, max_side=16, max_feature_bits=limit, qualities=qualities)
            symbols, _ = codec.payload.decode(payload, layout.grid, np.array(layout.cells), layout.quality)
            packets.append(
                {
                    "packet": data.hex(),
                    "grid": layout.grid,
                    "cells": list(layout.cells),
                    "quality": layout.quality,
                    "q": symbols.q.tolist(),
                }
            )
        text = "[\n" + ",\n".join(json.dumps(packet) for packet in packets) + "\n]\n"
        (HERE / name / "packets.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
