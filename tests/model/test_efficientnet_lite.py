"""EfficientNet-Lite2 as a checkpoint's vision tower: what is checked, and what torch and ONNX Runtime compute.

tests/lab/test_pretrained_trunk.py compares the trunk with the package that published its weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from device_client.compute import Compute
from device_client.encoder import TowerEncoder
from tofc.codec.fake import fake_weights
from tofc.errors import CheckpointError, UsageError
from tofc.model.checkpoint import Checkpoint
from tofc.model.efficientnet_lite import EfficientNetLite2Tower, colours
from tofc.model.open_image import open_image
from tofc.model.shipped import NANO
from tofc.model.tower import Tower
from tofc.model.views import views
from tofc_lab.checkpoint import fake
from tofc_lab.checkpoint.split import split

LITE = "efficientnet_lite2"


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole checkpoint with an EfficientNet-Lite2 tower, random weights and a codec; do not change it."""
    path: Path = tmp_path_factory.mktemp("lite")
    fake.write(path, tower=LITE)
    fake_weights(D=128, H=32, seed=4).save(path)
    return path


def draw(side: int, count: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(side).uniform(-1, 1, (count, 3, side, side)).astype(np.float32)


@pytest.mark.parametrize(("side", "grid"), [(336, 6), (224, 4), (260, 5), (100, 2)])
def test_the_grid_is_that_of_the_features(lite: Path, side: int, grid: int) -> None:
    checkpoint = Checkpoint.open(lite, "device")
    found = Tower(checkpoint).encode(draw(side, 2))
    assert checkpoint.config.grid(side) == grid
    assert found.shape == (2, grid * grid, 128) and np.ptp(found, 0).max() > 0.1  # it depends on the pixels


def test_cells_at_the_edge_are_means_of_what_is_there(lite: Path) -> None:
    network: Any = Tower(Checkpoint.open(lite, "device")).model
    assert isinstance(network, EfficientNetLite2Tower)
    last = torch.zeros(1, 1280, 11, 11)
    seen: list[torch.Tensor] = []
    network.adapter.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    last[..., 10, 10] = 4  # alone in the last cell, one of two in none, one of four in none
    last[..., 0, 0] = 4
    network.trunk.forward = lambda pixels: (torch.zeros(1, 120, 21, 21), last)
    network(torch.zeros(1, 3, 336, 336))
    pooled = seen[0][0, :, 0]  # [N]
    assert pooled[-1] == 4 and pooled[0] == 1 and pooled.count_nonzero() == 2


def test_the_detail_branch_sees_the_means_of_the_pixels() -> None:
    pixels = torch.from_numpy(draw(336))
    expected = pixels.unflatten(-1, (21, 16)).unflatten(-3, (21, 16)).mean((-1, -3))
    assert (colours(pixels) - expected).abs().max() < 1e-6


def test_pixels_are_what_the_trunk_was_trained_with(lite: Path) -> None:
    rule = Checkpoint.open(lite, "device").config.rule
    image = open_image(NANO / "example.jpg").resize((rule.global_size, rule.global_size))
    (view,) = views(image, rule)
    assert (view.pixels == ((np.asarray(image).astype(np.float32) - 127) / 128).transpose(2, 0, 1)).all()
    assert view.image().tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detail_width": None}, "vision_config.detail_width must be a positive whole number, got None"),
        ({"output_width": 0}, "vision_config.output_width must be a positive whole number, got 0"),
        ({"heads": 3}, "must have detail_width, adapter_width, .*, output_width only, got heads"),
        ({"code_width": 128}, "code_width must be less than output_width, 128, got 128"),
        ({"model_type": "resnet"}, "model_type must be one of perception_encoder, efficientnet_lite2, got 'resnet'"),
        ({"adapter_width": 65}, r"adapter.0.weight has shape \(64, 1296\), the configuration asks for \(65, 1296\)"),
    ],
)
def test_a_wrong_configuration_says_what_is_wrong(
    lite: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    shutil.copytree(lite, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    raw = json.loads(file.read_text())
    raw["vision_config"] |= change
    file.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path / "model")


def test_a_missing_tensor_is_named(lite: Path, tmp_path: Path) -> None:
    shutil.copytree(lite, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    del tensors["vision_model.trunk.blocks.7.depthwise.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no tensor vision_model\.trunk\.blocks\.7\.depthwise\.weight"):
        Checkpoint.open(tmp_path / "model", "device")


def test_a_half_has_the_tower_and_the_other_a_plain_decoder(lite: Path, tmp_path: Path) -> None:
    halves = split(lite, tmp_path / "halves")
    device, server = Checkpoint.open(halves.device), Checkpoint.open(halves.server)
    assert device.model_id == server.model_id == Checkpoint.open(lite).model_id
    assert all(name.startswith("vision_model.") for name in device.stored)
    assert server.config.tower == device.config.tower and server.config.tower.MODEL_TYPE == LITE
    pixels = draw(224)
    assert (Tower(device).encode(pixels) == Tower(Checkpoint.open(lite)).encode(pixels)).all()


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (Compute(dtype="int8"), "--dtype int8 would change the answers of efficientnet_lite2"),
        (Compute(backend="numpy"), "--backend must be one of auto, onnx, torch for efficientnet_lite2"),
    ],
)
def test_what_the_tower_does_not_bear_is_refused_before_it_is_loaded(
    lite: Path, compute: Compute, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        TowerEncoder.open(lite, compute=compute)


def test_half_precision_is_for_those_who_ask(tmp_path: Path) -> None:
    """A CPU computes depthwise convolutions in bfloat16 slowly, and ONNX Runtime in float32 fast."""
    fake.write(tmp_path, tower=LITE, dtype=torch.bfloat16)
    checkpoint = Checkpoint.open(tmp_path, "device")
    assert (Compute().dtype_of(checkpoint), Compute(dtype="bfloat16").dtype_of(checkpoint)) == ("float32", "bfloat16")
    plain, half = (Tower(checkpoint, dtype).encode(draw(224)) for dtype in (torch.float32, torch.bfloat16))
    assert 0 < np.linalg.norm(half - plain) < 0.3 * np.linalg.norm(plain)
