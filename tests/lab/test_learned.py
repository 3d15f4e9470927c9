"""The learned image codec of the comparison: real bytes, any size, resumed training. Needs `make lab`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("tofc_lab.codec.compressai_parts", exc_type=ImportError)

from tofc_lab.nano.features import TowerOutput
from tofc_lab.rate_distortion import learned
from tofc_lab.rate_distortion.hyperprior import MULTIPLE, Hyperprior, pixels

RECIPE = learned.ImageCodecRecipe(channels=8, latent=12, prices=(0.001, 0.01), steps=4, batch=2, crop=64, save=2)


def _image(width: int, height: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace nano's training pictures by ones that need no photographs."""

    def picture(folder: Path, kind: str, split: str, seed: int, index: int) -> tuple[Image.Image, dict[str, Any]]:
        assert split == "train"
        return _image(90, 80, index), {}

    monkeypatch.setattr(learned, "picture", picture)


@pytest.fixture(scope="module")
def model() -> Hyperprior:
    torch.manual_seed(0)
    return Hyperprior(8, 12, (20.0, 200.0)).ready()


@pytest.mark.parametrize("size", [(64, 64), (70, 130), (20, 33)])
def test_a_picture_is_decoded_from_its_bytes_alone(model: Hyperprior, size: tuple[int, int]) -> None:
    image = _image(*size)
    strings = model.compress(image, 1)
    decoded = model.decompress(strings, size, 1)
    assert decoded.size == size
    with torch.inference_mode():
        y, z = model.analyse(pixels(image), 1)
        assert y.shape[-1] * 16 == z.shape[-1] * MULTIPLE == -(-size[0] // MULTIPLE) * MULTIPLE
        medians = model.entropy_bottleneck.quantiles[:, 0, 1][:, None, None]
        _, means = model.expect((z - medians).round() + medians, 1)
        rounded = model.synthesise((y - means).round() + means, 1)[0, :, : size[1], : size[0]].clamp(0, 1)
    levels = torch.from_numpy(np.array(decoded)).permute(2, 0, 1).float()
    assert (levels - rounded * 255).abs().max() < 1


def test_finer_steps_cost_more_bytes(model: Hyperprior) -> None:
    image = _image(128, 128)
    coarse, fine = (sum(map(len, model.compress(image, rate))) for rate in (0, 1))
    assert coarse < fine


def test_a_setting_counts_its_bytes_and_shows_the_decoded_picture(model: Hyperprior) -> None:
    shown: list[Image.Image] = []

    def encode(image: Image.Image) -> TowerOutput:
        shown.append(image)
        return TowerOutput([], 0, 0)

    image = _image(128, 96)
    seen = learned.LearnedSetting(model, "abc", 1, 0.5).through(encode)(image)
    assert shown[0].size == (64, 48)
    strings = model.compress(image.resize((64, 48), Image.Resampling.LANCZOS), 1)
    assert seen.size == sum(map(len, strings)) + 2


def test_settings_and_weights_have_different_folders(model: Hyperprior) -> None:
    tried = [one for identity in ("a", "b") for one in learned.settings(model, identity, "world")]
    assert len({one.folder for one in tried}) == len(tried) == 2 * model.rates * len(learned.SCALES["world"])


@pytest.mark.usefixtures("world")
def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = learned.train(tmp_path, tmp_path / "whole.pt", recipe=RECIPE, log=lambda _: None)

    def stop(line: str) -> None:
        if line.startswith("4/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learned.train(tmp_path, tmp_path / "half.pt", recipe=RECIPE, log=stop)
    again = learned.train(tmp_path, tmp_path / "half.pt", recipe=RECIPE, log=lambda _: None)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    finished = learned.train(tmp_path, tmp_path / "half.pt", recipe=RECIPE, log=stop)
    assert finished.compress(_image(64, 64), 0) == whole.compress(_image(64, 64), 0)
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        learned.train(tmp_path, tmp_path / "half.pt", recipe=RECIPE, seed=1)


@pytest.mark.usefixtures("world")
def test_crops_of_any_scale_are_whole_crops(tmp_path: Path) -> None:
    for step in range(4):
        x = learned.batch(tmp_path, RECIPE, 0, step)
        assert x.shape == (2, 3, 64, 64)
        assert 0 <= x.min() < x.max() <= 1
        assert torch.equal(x, learned.batch(tmp_path, RECIPE, 0, step))
