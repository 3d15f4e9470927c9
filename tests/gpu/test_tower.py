"""How many views a GPU computes together, and what happens where its memory is too small for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.pretended_gpu import pretend_gpu
from device_client.compute import Compute
from device_client.encoder import TowerEncoder
from tests.e2e.conftest import MODEL, PICTURES
from tofc.model import perception_encoder, tower
from tofc.model.checkpoint import Checkpoint
from tofc.model.perception_encoder import PerceptionEncoder
from tofc.model.perception_encoder_config import PerceptionEncoderConfig
from tofc.model.tower import BATCH, Tower


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many views each forward takes."""
    found: list[int] = []
    forward = PerceptionEncoder.forward

    def noted(model: PerceptionEncoder, pixels: Tensor) -> Tensor:
        found.append(len(pixels))
        return forward(model, pixels)

    monkeypatch.setattr(PerceptionEncoder, "forward", noted)
    return found


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 224, 224)).astype(np.float32)


@pytest.mark.parametrize(("free", "together"), [(None, BATCH), (1 << 40, BATCH), (1 << 30, 7), (0, 1)])
def test_free_memory_decides_how_many_views_are_computed_together(
    monkeypatch: pytest.MonkeyPatch, free: int | None, together: int
) -> None:
    monkeypatch.setattr(tower, "free_device_memory_bytes", lambda device: free)
    monkeypatch.setattr(PerceptionEncoderConfig, "view_bytes", lambda self, side, item: 74_000_000)
    with pretend_gpu():
        assert Tower(Checkpoint.open(MODEL), device="cuda").at_once(504) == together
    assert Tower(Checkpoint.open(MODEL)).at_once(504) == 1


def test_a_view_of_the_released_size_takes_hundreds_of_megabytes() -> None:
    """Its widest tensor has 2 704 tokens of 8 960 numbers; nano's has 256 of a few hundred."""
    assert 1e6 < Checkpoint.open(MODEL).config.tower.view_bytes(224, 4) < 1e7
    assert 1e8 < PerceptionEncoderConfig(PerceptionEncoderConfig.filled({})).view_bytes(728, 2) < 1e9


@pytest.mark.parametrize("fits", [3, 1, 0])
def test_too_little_memory_only_makes_the_parts_smaller(
    monkeypatch: pytest.MonkeyPatch, parts: list[int], fits: int
) -> None:
    wanted = Tower(Checkpoint.open(MODEL)).encode(pixels(6))
    forward, limited = PerceptionEncoder.forward, set[bool]()

    def short(model: PerceptionEncoder, given: Tensor) -> Tensor:
        in_blocks = perception_encoder.block_tokens(given) == perception_encoder.BLOCK
        if len(given) > fits and not in_blocks:
            parts.append(len(given))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        limited.add(in_blocks)
        return forward(model, given)

    monkeypatch.setattr(PerceptionEncoder, "forward", short)
    with pretend_gpu():
        found = Tower(Checkpoint.open(MODEL), device="cuda").encode(pixels(6))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    alone = [1] * (1 if fits else 2)  # tried, and in blocks
    half = [3] if fits == 3 else [3, 2, *alone, *alone, *alone]
    assert parts[1:] == [6, *half, *half]
    assert limited == {fits == 0}


def test_other_errors_and_a_cpu_s_memory_are_not_tried_again(monkeypatch: pytest.MonkeyPatch, parts: list[int]) -> None:
    def fails(model: PerceptionEncoder, given: Tensor) -> Tensor:
        parts.append(len(given))
        raise error

    monkeypatch.setattr(PerceptionEncoder, "forward", fails)
    for device, error in (("cuda", RuntimeError("made up")), ("cpu", RuntimeError("std::bad_alloc"))):
        with pretend_gpu(), pytest.raises(RuntimeError, match=str(error)):
            Tower(Checkpoint.open(MODEL), device=device).encode(pixels(4))
    assert parts == [4, 4]


def test_a_device_computes_a_picture_s_crops_together(parts: list[int]) -> None:
    picture = Path(PICTURES / "picture-11.jpg")
    packets = []
    for device in ("cpu", "cuda"):
        parts.clear()
        with pretend_gpu(), Image.open(picture) as opened:
            encoder = TowerEncoder.open(MODEL, compute=Compute(device=device, backend="torch", dtype="float32"))
            encoder.load()
            packets.append([(one.index, one.packet) for one in encoder.encode(opened.convert("RGB"))])
        views = len(packets[-1])
        assert parts == {"cpu": [1] * views, "cuda": [views - 1, 1]}[device] and views > 2
    assert packets[0] == packets[1]
