"""Device and server on a pretended GPU: answers are those of the CPU, and deliberate mistakes are found."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.pretended_gpu import on_gpu, pretend_gpu
from device_client.compute import Compute
from device_client.encoder import TowerEncoder
from device_client.image_encoder import ImageEncoder
from device_client.link import Target
from device_client.picture import ImageForm
from device_client.sampling import Sampling
from device_client.session import Session
from edge_server.engine import qwen3
from edge_server.engine.qwen3 import load_qwen3
from edge_server.settings import IMAGE_BYTES, IMAGE_PIXELS, SessionLimits
from tests.e2e.conftest import MODEL, PICTURES, ServerThread
from tests.gpu.conftest import mutate
from tofc.codec.fake import fake_weights
from tofc.errors import Error
from tofc.model.checkpoint import Checkpoint
from tofc.model.perception_encoder import PerceptionEncoder
from tofc.model.tower import Tower
from tofc_lab.checkpoint import fake

IMAGES = SessionLimits(image_bytes=IMAGE_BYTES, image_pixels=IMAGE_PIXELS)
QUESTIONS = ("how many things are there?", "what is in the picture?")
SAMPLED = Sampling(temperature=1.5, top_p=0.9, top_k=20, seed=7)
LARGE = "picture-11.jpg"  # with crops


def encoder(device: str, form: ImageForm | None, model: Path = MODEL) -> Any:
    if form is not None:
        return ImageEncoder.open(model, form)
    return TowerEncoder.open(model, compute=Compute(device=device))


def answers(device: str, dtype: str, form: ImageForm | None = None, model: Path = MODEL) -> list[str]:
    """Ask a real server over a real session, greedily and by sampling."""

    async def ask() -> list[str]:
        async with Session(Target(address=server.address), encoder(device, form, model)) as session:
            picture = session.open(PICTURES / LARGE)
            greedy = [await session.ask([picture], question).result() for question in QUESTIONS]
            sampled = await session.ask([picture], QUESTIONS[0], sampling=SAMPLED).result()
            return [report.answer for report in (*greedy, sampled)]

    server = ServerThread(model=model, device=device, dtype=dtype, limits=IMAGES)
    try:
        return asyncio.run(ask())
    finally:
        server.stop()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_answers_are_those_of_the_cpu(dtype: str) -> None:
    with pretend_gpu():
        found = answers("cuda", dtype)
    assert found == answers("cpu", dtype) and len(set(found)) > 1


def test_pictures_may_come_as_files() -> None:
    form = ImageForm(codec="jpeg", quality=60, scale=1.0)
    with pretend_gpu():
        found = answers("cuda", "bfloat16", form)
    assert found == answers("cpu", "bfloat16", form)


@pytest.mark.parametrize("form", [None, ImageForm(codec="webp", quality=90, scale=1.0)])
def test_another_tower_gives_the_answers_of_the_cpu(tmp_path: Path, form: ImageForm | None) -> None:
    """On the device, whose back end is then torch, and on a server that takes image files."""
    fake.write(tmp_path, tower="efficientnet_lite2", seed=1)
    fake_weights(D=128, H=32, seed=4).save(tmp_path)
    with pretend_gpu():
        found = answers("cuda", "float32", form, tmp_path)
    assert found == answers("cpu", "float32", form, tmp_path) and any(found)


def view() -> Any:
    return np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)


@pytest.mark.usefixtures("gpu")
def test_weights_are_on_the_gpu() -> None:
    tower = Tower(Checkpoint.open(MODEL), torch.bfloat16, "cuda")
    decoder: Any = load_qwen3(Checkpoint.open(MODEL), device="cuda", dtype=torch.bfloat16)
    for model in (tower.model, decoder):
        assert all(on_gpu(one) for one in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize(
    ("owner", "name", "old", "new"),
    [
        (Tower, "features", ".to(self.device, self.dtype)", ".to(self.dtype)"),
        (Tower, "encode", ".cpu()", ""),
        (PerceptionEncoder, "forward", "one.to(x.device)", "one"),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_mistakes_in_the_tower_are_found(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, old: str, new: str
) -> None:
    tower = Tower(Checkpoint.open(MODEL), torch.float32, "cuda")
    tower.encode(view())
    mutate(monkeypatch, owner, name, old, new)
    with pytest.raises((RuntimeError, TypeError), match=r"same device|to numpy"):
        tower.encode(view())


@pytest.mark.usefixtures("gpu")
def test_a_mistake_at_loading_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, qwen3, "load_qwen3", "model.to(device).eval()", "model.eval()")
    assert not all(map(on_gpu, qwen3.load_qwen3(Checkpoint.open(MODEL), device="cuda").buffers()))


def test_a_mistake_on_the_way_to_the_decoder_fails_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    move = torch.Tensor.to

    def stays(tensor: torch.Tensor, *places: Any, **more: Any) -> torch.Tensor:
        return move(tensor, *(one for one in places if not isinstance(one, torch.device)), **more)

    with pretend_gpu():
        server = ServerThread(device="cuda")
        try:

            async def ask() -> None:
                async with Session(Target(address=server.address), encoder("cpu", None)) as session:
                    picture = session.open(PICTURES / LARGE)
                    await session.ask([picture], QUESTIONS[0]).result()
                    monkeypatch.setattr(torch.Tensor, "to", stays)
                    with pytest.raises(Error):
                        await session.ask([picture], QUESTIONS[0]).result()

            asyncio.run(ask())
        finally:
            monkeypatch.undo()
            server.stop()
