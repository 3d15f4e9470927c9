"""How far other decoders are from nano's identity probe, in nats.

    git show f20560b:models/nano/model.safetensors > earlier.safetensors
    python -m benchmarks.identity_probe earlier.safetensors …

Measures nano in three number formats, nano with noise on every weight, and the files given, which must have nano's
shapes. Promises one line a decoder. Leaves the limit to `tofc.model.identity_probe`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from edge_server.engine.qwen3 import load_qwen3
from edge_server.token_embedding import TokenEmbedding
from tofc.model.checkpoint import Checkpoint
from tofc.model.identity_probe import LIKELIEST, TOLERANCE, IdentityProbe, distance
from tofc.model.shipped import NANO

NOISE = (0.001, 0.003, 0.01, 0.03)  # of each weight, relative


def measure(weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> float:
    """Return the distance of a decoder with these weights, by Qwen3's names, from nano's probe."""
    nano = Checkpoint.open(NANO, "server")
    probe, embed = IdentityProbe.read(NANO), TokenEmbedding(nano)
    model = load_qwen3(nano, dtype=dtype)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()})
    found = []
    for one in probe.prompts:
        with torch.inference_mode():
            rows = torch.from_numpy(embed(one.ids)).to(dtype)[None]
            top = model(inputs_embeds=rows).logits[0, -1].float().log_softmax(-1).topk(LIKELIEST)
        found.append(dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
    return distance(probe, found)


def noisy(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return weights, each multiplied by 1 + scale × N(0, 1), seed 0."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: one.float() * (1 + scale * torch.randn(one.shape, generator=generator)) for name, one in weights.items()
    }


def main(files: list[str]) -> None:
    """Measure, and print a line for each decoder."""
    own = dict(Checkpoint.open(NANO, "server").decoder_tensors())
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        print(f"nano in {dtype}: {measure(own, dtype):.3f}")
    for scale in NOISE:
        print(f"nano with noise of {scale}: {measure(noisy(own, scale)):.3f}")
    for file in files:
        weights = load_file(Path(file))
        print(f"{file}: {measure({name: weights[name] for name in own}):.3f}")
    print(f"allowed: {TOLERANCE}")


if __name__ == "__main__":
    main(sys.argv[1:])
