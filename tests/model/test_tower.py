"""The tower against a second implementation, written from the published rules and sharing no code with it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lab import fake
from shared.model.checkpoint import Checkpoint
from shared.model.projector import Projector
from shared.model.tower import Tower


def rotate_pairs(x: Tensor, side: int) -> Tensor:
    """2-D RoPE, interleaved: the first half of a head turns by the column, the second by the row.

    ``x`` is [heads, side², width]; pair i of a half turns by position × 10000^(−2i / (width / 2)).
    """
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(0, half, 2).double() / half)
    cells = torch.arange(side * side)
    angles = torch.cat([(cells % side)[:, None] * rates, (cells // side)[:, None] * rates], 1)  # [side², width / 2]
    turned = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2)


def reference(w: dict[str, Tensor], pixels: Tensor, heads: int) -> Tensor:
    """One view [3, S, S] → [N, D] in float64, straight from the released tensors."""
    x = F.conv2d(pixels[None], w["conv1.weight"], stride=14)[0]  # [W, side, side]
    width, side = x.shape[0], x.shape[-1]
    native = math.isqrt(len(w["positional_embedding"]))
    positions = w["positional_embedding"].T.reshape(1, width, native, native)
    positions = F.interpolate(positions, size=(side, side), mode="bilinear", align_corners=False)[0]
    x = (x + positions).flatten(1).T  # [side², W]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = norm(x, "ln_pre")
    layers = 1 + max(int(name.split(".")[2]) for name in w if name.startswith("transformer."))
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}"
        y = norm(x, f"{block}.ln_1") @ w[f"{block}.attn.in_proj_weight"].T + w[f"{block}.attn.in_proj_bias"]
        q, k, v = (part.reshape(side * side, heads, -1).transpose(0, 1) for part in y.chunk(3, 1))
        q, k = rotate_pairs(q, side), rotate_pairs(k, side)
        attention = (q @ k.transpose(1, 2) / math.sqrt(width // heads)).softmax(-1) @ v
        y = linear(attention.transpose(0, 1).flatten(1), f"{block}.attn.out_proj")
        x = x + w[f"{block}.ls_1.gamma"] * y
        y = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        y = linear(y * torch.sigmoid(1.702 * y), f"{block}.mlp.c_proj")  # quick GELU
        x = x + w[f"{block}.ls_2.gamma"] * y
    x = x.T.reshape(1, width, side, side)
    for name in ("vit_downsampler1", "vit_downsampler2"):
        x = F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=2, padding=1)
    return x[0].flatten(1).T


def draw(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("size", [336, 224, 112])
def test_the_tower_computes_the_published_rules(tiny: Path, size: int) -> None:
    checkpoint = Checkpoint.open(tiny, "device")
    w = {name.removeprefix("vision_model."): t.double() for name, t in checkpoint.vision_tensors().items()}
    pixels = draw(2, 3, size, size)
    found = Tower(checkpoint).encode(pixels)
    side = checkpoint.config.grid(size)
    assert found.shape == (2, side * side, checkpoint.config.feature_dim) and found.dtype == np.float32
    for one, features in zip(pixels, found, strict=True):
        expected = reference(w, torch.from_numpy(one).double(), heads=2).numpy()
        np.testing.assert_allclose(features, expected, atol=1e-4 * np.abs(expected).max())


def test_weights_stored_in_half_precision_load_into_the_type_asked_for(tmp_path: Path) -> None:
    fake.write(tmp_path, dtype=torch.float16)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.stored["vision_model.conv1.weight"].dtype == "F16"
    tower = Tower(checkpoint)
    assert {p.dtype for p in tower.model.parameters()} == {torch.float32}
    narrow = Tower(checkpoint, torch.bfloat16)
    assert {p.dtype for p in narrow.model.parameters()} == {torch.bfloat16}
    pixels = draw(1, 3, 224, 224)
    found, expected = narrow.encode(pixels), tower.encode(pixels)
    assert found.dtype == np.float32
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)


@pytest.mark.parametrize("shape", [(3, 224, 224), (1, 3, 224, 210), (1, 3, 225, 225), (1, 1, 224, 224)])
def test_other_shapes_are_refused(tiny: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[B, 3, S, S\] with S a multiple of 14"):
        Tower(Checkpoint.open(tiny)).encode(draw(*shape))


def test_the_projector_is_one_linear_layer(tiny: Path) -> None:
    checkpoint = Checkpoint.open(tiny, "server")
    features = draw(5, 128)
    weight = checkpoint.projector_tensors()["vit_large_projector.weight"]
    expected = (torch.from_numpy(features) @ weight.T).numpy()
    np.testing.assert_allclose(Projector(checkpoint).project(features), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"\[n, 128\]"):
        Projector(checkpoint).project(draw(5, 64))
