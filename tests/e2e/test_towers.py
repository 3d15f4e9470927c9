"""A model with another vision tower, EfficientNet-Lite2 with random weights: a real client asks a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_client.compute import Compute
from device_client.encoder import TowerEncoder
from device_client.image_encoder import ImageEncoder
from device_client.link import Target
from device_client.picture import ImageForm
from device_client.sampling import Sampling
from device_client.session import Session
from edge_server.settings import IMAGE_BYTES, IMAGE_PIXELS, SessionLimits
from tests.e2e.conftest import PICTURES, ServerThread
from tofc.codec.fake import fake_weights
from tofc.model.checkpoint import Checkpoint
from tofc.model.open_image import open_image
from tofc.model.projector import Projector
from tofc.model.tower import Tower
from tofc.model.views import views
from tofc_lab.checkpoint import fake
from tofc_lab.checkpoint.split import split

IMAGES = SessionLimits(image_bytes=IMAGE_BYTES, image_pixels=IMAGE_PIXELS)
LARGE = PICTURES / "picture-11.jpg"  # with crops
SAMPLED = Sampling(temperature=1.5, max_tokens=12, seed=7)  # a random decoder ends its greedy answers at once
LOSSLESS = ImageForm(codec="webp", quality=100, scale=1.0)


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("lite") / "whole"
    fake.write(path, tower="efficientnet_lite2", seed=1)
    fake_weights(D=128, H=32, seed=4).save(path)
    return path


@pytest.fixture(scope="module")
def serving(lite: Path) -> Iterator[ServerThread]:
    server = ServerThread(model=lite, limits=IMAGES)
    yield server
    server.stop()


def answers(server: ServerThread, encoder: Any, *pictures: Path) -> list[str]:
    async def ask() -> list[str]:
        async with Session(Target(address=server.address), encoder) as session:
            return [
                (await session.ask([session.open(path)], "what is there?", sampling=SAMPLED).result()).answer
                for path in pictures
            ]

    return asyncio.run(ask())


def test_a_device_half_asks_a_server_half(lite: Path, tmp_path: Path, serving: ServerThread) -> None:
    halves = split(lite, tmp_path)
    half = ServerThread(model=halves.server)
    try:
        found = answers(half, TowerEncoder.open(halves.device), LARGE)
    finally:
        half.stop()
    assert found == answers(serving, TowerEncoder.open(lite), LARGE)


def test_answers_do_not_depend_on_the_back_end(lite: Path, serving: ServerThread) -> None:
    some = sorted(PICTURES.glob("*.jpg"))[:6]
    by_torch = answers(serving, TowerEncoder.open(lite, compute=Compute(backend="torch")), *some)
    other = ServerThread(model=lite)  # has not seen the pictures
    try:
        found = answers(other, TowerEncoder.open(lite, compute=Compute(backend="onnx")), *some)
    finally:
        other.stop()
    # A number near a tie may be rounded otherwise in a few packets (tests/model/test_backends.py), and random weights
    # then give another answer.
    assert sum(one == another for one, another in zip(found, by_torch, strict=True)) >= 4
    assert len(set(by_torch)) > 1


def test_the_server_encodes_image_files_with_its_own_tower(lite: Path, serving: ServerThread) -> None:
    assert answers(serving, ImageEncoder.open(lite, LOSSLESS), LARGE)[0]
    checkpoint = Checkpoint.open(lite)
    server: Any = serving.running
    encoder = server._backend.view_encoder
    prepared = views(open_image(LARGE), checkpoint.config.rule)
    crop, whole = prepared[0].pixels, prepared[-1].pixels
    for pixels in (crop, whole):
        (rows,) = encoder.encode([pixels])
        features = Tower(checkpoint).encode(pixels[None])[0]
        grid = checkpoint.config.grid(pixels.shape[-1])
        table = fake_weights(D=128, H=32, seed=4).grid_embedding[grid]
        np.testing.assert_allclose(rows, Projector(checkpoint).project(features) + table, atol=1e-4)
