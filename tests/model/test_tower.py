"""The tower against a second implementation, written from the published rules and sharing no code with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tofc.model.checkpoint import Checkpoint
from tofc.model.open_image import open_image
from tofc.model.projector import Projector
from tofc.model.tower import Tower
from tofc.model.views import views
from tofc_lab.checkpoint import fake
from tofc_lab.verify import reference_tower


def draw(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def agree(checkpoint: Checkpoint, pixels: NDArray[np.float32]) -> None:
    found = Tower(checkpoint).encode(pixels)
    side = checkpoint.config.grid(pixels.shape[-1])
    assert found.shape == (len(pixels), side * side, checkpoint.config.feature_dim) and found.dtype == np.float32
    w = {name.removeprefix("vision_model."): tensor for name, tensor in checkpoint.vision_tensors().items()}
    for one, features in zip(pixels, found, strict=True):
        expected = reference_tower.features(w.__getitem__, torch.from_numpy(one), heads=2, layers=2).numpy()
        assert np.linalg.norm(features - expected) <= 1e-4 * np.linalg.norm(expected)
        assert np.abs(features - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("size", [336, 224, 112])
def test_the_tower_computes_the_published_rules(tiny: Path, size: int) -> None:
    agree(Checkpoint.open(tiny, "device"), draw(2, 3, size, size))


@pytest.mark.parametrize(("size", "features"), [(728, 169), (504, 81)])
def test_views_of_the_released_sizes_too(tmp_path: Path, size: int, features: int) -> None:
    """The 52 × 52 stored positions for the global view; interpolated ones for a crop's 36 × 36."""
    fake.write(tmp_path, image_size=728)
    checkpoint = Checkpoint.open(tmp_path, "device")
    assert checkpoint.stored["vision_model.positional_embedding"].shape == (2704, 32)
    assert checkpoint.config.grid(size) ** 2 == features
    agree(checkpoint, draw(1, 3, size, size))


GOLDEN = [  # of models/nano/example.jpg: every seventh feature, every 191st number of it
    [-0.7043, 5.2487, 1.4983, -2.9287, -0.3639],
    [-4.8165, 4.8534, 3.1914, -1.1740, -0.5110],
    [-1.8181, 10.8694, 3.0767, -4.3639, -1.8040],
    [-0.8747, 7.0625, 0.8617, -2.9181, -2.0337],
    [4.7664, 5.4839, -0.3514, -4.5092, 1.2988],
    [3.6293, 9.8538, -3.6639, 1.7761, 4.5379],
]


def test_nanos_features_stay_the_same() -> None:
    """Codec and decoder were trained with these features: a new version of a library must not change them."""
    nano = Path("models/nano")
    checkpoint = Checkpoint.open(nano, "device")
    (view,) = views(open_image(nano / "example.jpg"), checkpoint.config.rule)
    features = Tower(checkpoint).encode(view.pixels[None])[0]
    np.testing.assert_allclose(features[::7, ::191], GOLDEN, atol=1e-3)


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


def test_training_and_inference_compute_the_same(tiny: Path) -> None:
    """With gradients, attention is computed differently; every parameter gets a gradient."""
    tower = Tower(Checkpoint.open(tiny, "device"))
    pixels = draw(2, 3, 224, 224)
    expected = tower.encode(pixels)
    tower.model.requires_grad_(True)
    found = tower.model(torch.from_numpy(pixels))
    found.square().mean().backward()
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5 * np.abs(expected).max())
    assert all(one.grad is not None and one.grad.abs().max() > 0 for one in tower.model.parameters())


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
