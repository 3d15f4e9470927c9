"""The split model, uncompressed, compared with the whole model; the order of features with transformers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import Step3p7Config, Step3p7Model

from edge_server.assemble import Assembled, PictureRows, SplitAssembler
from edge_server.engine.base import Prompt
from edge_server.engine.qwen3 import load_qwen3
from edge_server.engine.sampling import SamplingParams
from edge_server.engine.transformers import TransformersEngine
from edge_server.token_embedding import TokenEmbedding
from tests.model.by_transformers import by_column_first, by_transformers
from tofc.codec.codec import Codec
from tofc.codec.fake import fake_weights
from tofc.model.checkpoint import Checkpoint
from tofc.model.projector import Projector
from tofc.model.prompt import Turn, load_tokenizer
from tofc.model.tower import Tower
from tofc.model.views import plan, views
from tofc_lab.checkpoint import fake
from tofc_lab.checkpoint.split import Halves, split
from tofc_lab.verify.step3p7 import noise
from tofc_lab.verify.whole_model import WholeModel

QUESTION = "how many cats are there?"
SIZES = [(300, 300), (300, 150), (700, 400), (500, 900)]  # no crops, 1 × 2, 2 × 3, 4 × 2


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a checkpoint whose codec has grid embeddings of zeros."""
    out: Path = tmp_path_factory.mktemp("whole")
    fake.write(out, seed=3, tied=request.param)
    nothing = {side: np.zeros((side * side, 32), np.float32) for side in (4, 6)}
    replace(fake_weights(D=128, H=32), grid_embedding=nothing).save(out)
    return out


@pytest.fixture(scope="module")
def halves(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Halves:
    return split(whole, tmp_path_factory.mktemp("halves"))


def on_the_device(half: Path, size: tuple[int, int]) -> list[NDArray[np.float32]]:
    """Return the features [N, D] of each view."""
    tower = Tower(checkpoint := Checkpoint.open(half, "device"))
    return [tower.encode(view.pixels[None])[0] for view in views(noise(size), checkpoint.config.rule)]


def on_the_server(half: Path, size: tuple[int, int], features: list[NDArray[np.float32]]) -> Assembled:
    checkpoint = Checkpoint.open(half, "server")
    projector = Projector(checkpoint)
    assembler = SplitAssembler(
        config=checkpoint.config,
        codecs={"id": Codec.load(half)},
        projector=projector,
        tokenizer=load_tokenizer(checkpoint),
        embed=TokenEmbedding(checkpoint),
    )
    cut = plan(*size, checkpoint.config.rule)
    rows = [assembler.add_grid(projector.project(one), round(len(one) ** 0.5), np.arange(len(one))) for one in features]
    picture = PictureRows(rows=cut.rows, columns=cut.columns, views=rows)
    return assembler.prompt([Turn(role="user", text=QUESTION)], [picture], 10_000)


async def answer(model: Any, prompt: Prompt, most: int) -> list[int]:
    engine = TransformersEngine(model, [])
    try:
        return [token async for token in engine.submit(prompt, SamplingParams(max_tokens=most))]
    finally:
        await engine.stop()


@pytest.mark.parametrize("size", SIZES)
def test_the_halves_together_say_what_the_whole_model_says(whole: Path, halves: Halves, size: tuple[int, int]) -> None:
    model = load_qwen3(Checkpoint.open(halves.server, "server"))
    assembled = on_the_server(halves.server, size, on_the_device(halves.device, size))
    with torch.inference_mode():
        logits = model(inputs_embeds=torch.from_numpy(assembled.prompt.embeds)[None]).logits[0].numpy()

    other = WholeModel.open(whole)
    cut = plan(*size, Checkpoint.open(whole).config.rule)
    ids = other.prompt_ids(QUESTION, cut.rows, cut.columns, crop=16, whole=36)
    pixels = [view.pixels for view in views(noise(size), Checkpoint.open(whole).config.rule)]
    features = [other.features(one) for one in pixels]
    reply = other.reply(ids, other.visual(features), most=12, keep=len(ids))

    assert list(assembled.ids) == ids
    assert logits.shape == reply.logits.shape
    np.testing.assert_allclose(logits, reply.logits, atol=1e-5 * np.abs(reply.logits).max())
    assert asyncio.run(answer(model, assembled.prompt, 12)) == reply.answer
    if cut.crops:  # views in another order would be seen
        swapped = other.reply(ids, other.visual(features[1:-1] + features[:1] + features[-1:]), most=1, keep=len(ids))
        assert np.abs(swapped.logits - reply.logits).max() > 1e-3 * np.abs(reply.logits).max()


def test_the_halves_are_a_whole_model_too(whole: Path, halves: Halves) -> None:
    one, other = WholeModel.open(whole), WholeModel.open(halves.device.parent)
    pixels = np.random.default_rng(0).standard_normal((3, 224, 224)).astype(np.float32)
    assert torch.equal(one.visual([one.features(pixels)]), other.visual([other.features(pixels)]))
    assert one.prompt_ids(QUESTION, 1, 2, 16, 36) == other.prompt_ids(QUESTION, 1, 2, 16, 36)


@by_column_first
@pytest.mark.parametrize("size", SIZES)
def test_features_are_in_the_order_that_transformers_gives_them(tiny: Path, size: tuple[int, int]) -> None:
    checkpoint = Checkpoint.open(tiny)
    build: Any = Step3p7Config  # untyped
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    text = small | {"head_dim": 8, "intermediate_size": 8, "vocab_size": 16, "mlp_layer_types": ["dense"]}
    vision = checkpoint.config.tower.values
    model = Step3p7Model(build(vision_config=vision, text_config=text, projector_bias=False)).eval()
    projector = Projector(checkpoint)
    model.vision_model.load_state_dict(by_transformers(checkpoint, torch.float32).state_dict())
    model.multi_modal_projector.load_state_dict({"weight": torch.from_numpy(projector.weight)})
    *crops, last = (torch.from_numpy(view.pixels) for view in views(noise(size), checkpoint.config.rule))
    with torch.inference_mode():
        (expected,) = model.get_image_features(
            pixel_values=last[None],
            pixel_values_local=torch.stack(crops) if crops else None,
            num_local_patches=[len(crops)],
        ).pooler_output
    found = np.concatenate([projector.project(one) for one in on_the_device(tiny, size)])
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5 * expected.abs().max().item())
