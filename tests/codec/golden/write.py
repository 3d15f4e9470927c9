"""Writes the golden codecs and packets: ``python tests/codec/golden/write.py``, from the repository's root.

Run it only when the format changes, and raise the format of codec.json when it does.
"""

import json
from dataclasses import replace
from pathlib import Path

from shared.codec import Codec
from shared.codec.fake import fake_features, fake_weights
from shared.codec.packet import read
from shared.codec.weights import CodecWeights

HERE = Path(__file__).parent
SIZES = ((36, 36), (36, 12), (36, 1), (36, 35), (16, 16), (16, 5), (25, 25), (25, 9), (1, 1))  # (N, n)


def small(experts: int, qualities: int) -> CodecWeights:
    weights = fake_weights(D=12, M=6, Z=2, H=4, E=experts, seed=experts, Q=qualities)
    return replace(weights, grid_embedding={})


def main() -> None:
    for experts, qualities in ((1, 1), (3, 4)):
        codec = Codec(small(experts, qualities))
        directory = HERE / f"experts-{experts}"
        codec.weights.save(directory)
        packets = []
        for index, (total, n) in enumerate(SIZES):
            data = codec.encode(fake_features(codec.weights, total, seed=n), n, index % qualities)
            limit = codec.payload.max_feature_bits
            layout, payload = read(data, max_side=16, max_feature_bits=limit, qualities=qualities)
            symbols = codec.payload.decode(payload, layout.n, layout.quality)
            packets.append(
                {
                    "packet": data.hex(),
                    "grid": layout.grid,
                    "cells": list(layout.cells),
                    "quality": layout.quality,
                    "experts": symbols.experts.tolist(),
                    "z": symbols.z.tolist(),
                    "q": symbols.q.tolist(),
                }
            )
        text = "[\n" + ",\n".join(json.dumps(packet) for packet in packets) + "\n]\n"
        (directory / "packets.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
