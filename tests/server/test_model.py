"""The server with a checkpoint and a codec, both tiny and random: embeddings, answers, what is loaded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edge_server import backend as backends
from edge_server.assemble import PictureRows, SplitAssembler
from edge_server.backend import Backend
from edge_server.engine.base import SamplingParams
from edge_server.engine.qwen3 import load_qwen3
from edge_server.server import start
from edge_server.settings import ServerSettings, SessionLimits
from tests.server.conftest import Connect
from tofc.codec.codec import Codec
from tofc.codec.fake import fake_features, fake_weights
from tofc.errors import CheckpointError, CorruptPacketError, InvalidRequestError, ResourceError
from tofc.model.checkpoint import Checkpoint
from tofc.model.generation import stop_tokens
from tofc.model.projector import Projector
from tofc.model.prompt import Turn, load_tokenizer
from tofc.model.released_names import DECODER, VISION
from tofc.model.tower import Tower
from tofc.v1 import tofc_pb2 as pb
from tofc_lab.checkpoint import fake as lab_fake
from tofc_lab.checkpoint.split import split

D, H, GRID, CROP_GRID = 128, 32, 6, 4


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("model")
    lab_fake.write(out, seed=3, tied=request.param)
    fake_weights(D=D, H=H, seed=4).save(out)
    return out


@pytest.fixture(scope="module")
def codec(folder: Path) -> Codec:
    return Codec.load(folder)


@pytest.mark.parametrize(
    "written",
    [{"rope_theta": 1e6, "rope_scaling": None}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}],
)
def test_the_decoder_uses_the_rope_theta_of_its_configuration(tmp_path: Path, written: dict[str, object]) -> None:
    """It is spelled in two ways, by release of transformers; the default is a hundred times smaller."""
    lab_fake.write(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["text_config"] |= written
    (tmp_path / "config.json").write_text(json.dumps(raw))
    model: Any = load_qwen3(Checkpoint.open(tmp_path, "server"))
    expected = 1e6 ** -(torch.arange(0, 32, 2) / 32)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, expected)


def packet(codec: Codec, cells: int, n: int, seed: int) -> bytes:
    return codec.encode(fake_features(codec.weights, cells, seed=seed), n)


@pytest.fixture(scope="module")
def backend(folder: Path) -> Iterator[Backend]:
    backend = backends.load(ServerSettings(model=folder))
    yield backend
    asyncio.run(backend.engine.stop())


def expected_rows(folder: Path, codec: Codec, data: bytes) -> NDArray[np.float32]:
    decoded = codec.decode(data)
    weight = Checkpoint.open(folder).projector_tensors()["vit_large_projector.weight"].numpy()
    return decoded.features @ weight.T + codec.grid_embedding(decoded.grid, decoded.positions)


def test_a_view_is_projected_and_gets_its_grid_embedding(folder: Path, codec: Codec, backend: Backend) -> None:
    data, codec_id = packet(codec, GRID**2, 12, seed=1), backend.codecs[0].codec_id
    (rows,) = backend.assembler.views(data, codec_id=codec_id, count=1, last=True)
    assert rows.shape == (12, H) and rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected_rows(folder, codec, data), atol=1e-5)
    with pytest.raises(
        InvalidRequestError, match="a crop of 224 px has a grid of 4 x 4 features, the packet has 6 x 6"
    ):
        backend.assembler.views(data, codec_id=codec_id, count=1, last=False)
    with pytest.raises(CorruptPacketError) as damaged:
        backend.assembler.views(data[:-1] + bytes([data[-1] ^ 1]), codec_id=codec_id, count=1, last=True)
    assert damaged.value.reason == "CHECKSUM_MISMATCH"


def test_views_of_one_packet_are_those_of_their_own_packets(folder: Path, codec: Codec, backend: Backend) -> None:
    codec_id = backend.codecs[0].codec_id
    coded = [
        codec.code(fake_features(codec.weights, cells, seed), n)
        for seed, (cells, n) in enumerate(((CROP_GRID**2, 16), (CROP_GRID**2, 5), (GRID**2, 12)))
    ]
    found = backend.assembler.views(codec.write(coded), codec_id=codec_id, count=3, last=True)
    for number, (view, rows) in enumerate(zip(coded, found, strict=True)):
        alone = backend.assembler.views(codec.write([view]), codec_id=codec_id, count=1, last=number == 2)
        assert (rows == alone[0]).all()
    with pytest.raises(CorruptPacketError, match="3 views, at most 2"):
        backend.assembler.views(codec.write(coded), codec_id=codec_id, count=2, last=True)
    with pytest.raises(InvalidRequestError, match="has 3 views, the request says 4"):
        backend.assembler.views(codec.write(coded), codec_id=codec_id, count=4, last=True)
    with pytest.raises(InvalidRequestError, match="a crop of 224 px has a grid of 4 x 4 features"):
        backend.assembler.views(codec.write(coded), codec_id=codec_id, count=3, last=False)


def test_views_replace_the_patch_tokens_of_the_prompt(folder: Path, backend: Backend) -> None:
    rng = np.random.default_rng(5)
    views = [rng.standard_normal((n, H)).astype(np.float32) for n in (3, 2, 5)]
    turns = [Turn(role="user", text="a <im_patch> in a text")]
    made = backend.assembler.prompt(turns, [PictureRows(rows=1, columns=2, views=views)], 1000)
    embeds = made.prompt.embeds
    assert made.visual_tokens == 10
    places = [t for t, row in enumerate(embeds) if any((row == want).all() for view in views for want in view)]
    np.testing.assert_array_equal(embeds[places], np.concatenate(views))
    # <patch_start> 3 <patch_end> <patch_start> 2 <patch_end> <im_start> 5 <im_end>
    assert [t - places[0] for t in places] == [0, 1, 2, 5, 6, 9, 10, 11, 12, 13]
    table = Checkpoint.open(folder).tensors("model.embed_tokens")["model.embed_tokens.weight"].numpy()
    text = [row for t, row in enumerate(embeds) if t not in places]
    assert all((table == row).all(1).any() for row in text)
    again = backend.assembler.prompt(turns, [PictureRows(rows=1, columns=2, views=views)], len(embeds))
    np.testing.assert_array_equal(again.prompt.embeds, embeds)  # the table was not written into
    for most in (len(embeds) - 1, 9):
        with pytest.raises(InvalidRequestError, match=f"at most {most}"):
            backend.assembler.prompt(turns, [PictureRows(rows=1, columns=2, views=views)], most)


def reference(folder: Path, embeds: NDArray[np.float32], count: int) -> list[int]:
    checkpoint = Checkpoint.open(folder)
    model = load_qwen3(checkpoint)
    found: Any = model.generate(
        inputs_embeds=torch.from_numpy(embeds)[None],
        attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    return [int(token) for token in found[0]]


async def test_packets_in_and_text_out(folder: Path, codec: Codec, connect: Connect) -> None:
    server = await start(ServerSettings(model=folder, port=0, grace_s=0.0))
    try:
        checkpoint = Checkpoint.open(folder)
        client = connect(server)
        await client.hello(checkpoint.model_id, checkpoint.codec_id)
        await client.picture(1, "p", rows=1, columns=1)
        crop, whole = packet(codec, CROP_GRID**2, 5, seed=6), packet(codec, GRID**2, 7, seed=7)
        await client.view(1, 1, whole)
        await client.view(1, 0, crop)
        await client.ask(1, "what is in the picture?", refs=(1,), sampling=pb.Sampling(max_tokens=12))
        text, done = await client.answer(1)
        backend = server.backend
        rows = [
            one
            for data in (crop, whole)
            for one in backend.assembler.views(data, codec_id=checkpoint.codec_id, count=1, last=data is whole)
        ]
        made = backend.assembler.prompt(
            [Turn(role="user", text="what is in the picture?")], [PictureRows(rows=1, columns=1, views=rows)], 1000
        )
        wanted = reference(folder, made.prompt.embeds, 12)
        stops = stop_tokens(checkpoint)
        wanted = [token for token in wanted if token not in stops]
        assert done.usage.new_tokens == len(wanted)
        assert text == backend.decode(wanted).rstrip("\N{REPLACEMENT CHARACTER}")
        assert (done.usage.prompt_tokens, done.usage.visual_tokens) == (len(made.prompt.embeds), 12)
        assert done.timing.prefill_us > 0
    finally:
        await server.stop()


async def test_the_tower_is_never_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    tensors = Checkpoint.tensors

    def spy(self: Checkpoint, prefix: str | tuple[str, ...] = "") -> Any:
        found = tensors(self, prefix)
        asked.extend(found)
        return found

    monkeypatch.setattr(Checkpoint, "tensors", spy)
    backend = backends.load(ServerSettings(model=folder))
    assert asked
    assert not [name for name in asked if "vision" in name]
    generation = backend.engine.submit(
        backend.assembler.prompt([Turn(role="user", text="hi")], [], 100).prompt, SamplingParams(max_tokens=2)
    )
    assert len([token async for token in generation]) <= 2
    await backend.engine.stop()


async def test_images_need_the_whole_checkpoint(folder: Path, tmp_path: Path) -> None:
    split(folder, tmp_path)
    taking = SessionLimits(image_bytes=100_000, image_pixels=1_000_000)
    for path, half in ((tmp_path / "device", "device"), (tmp_path / "server", "server"), (tmp_path, "server")):
        with pytest.raises(CheckpointError, match=f"is the {half} half of a model; --take-images needs tower and dec"):
            backends.load(ServerSettings(model=path, limits=taking))
    assert backends.load(ServerSettings(model=tmp_path)).view_encoder is None


def test_tower_and_decoder_must_fit_together_before_either_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loading(*_: Any, **__: Any) -> None:
        raise AssertionError("the decoder was read")

    checkpoint = Checkpoint.open(folder)
    decoder, tower = (4 * checkpoint.parameter_count(one) for one in (DECODER, VISION))
    monkeypatch.setattr("edge_server.engine.qwen3.load_qwen3", loading)
    monkeypatch.setattr("tofc.model.resources.free_memory_bytes", lambda: decoder + tower - 1)
    taking = SessionLimits(image_bytes=1, image_pixels=1)
    with pytest.raises(ResourceError, match=r"with the vision tower, which --take-images needs, in float32 needs"):
        backends.load(ServerSettings(model=folder, limits=taking))
    with pytest.raises(AssertionError, match="was read"):
        backends.load(ServerSettings(model=folder))


@pytest.mark.parametrize("what", ["the decoder", "the vision tower"])
def test_memory_that_runs_out_while_loading_is_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    where = {"the decoder": "edge_server.engine.qwen3.load_qwen3", "the vision tower": "tofc.model.tower.Tower"}
    monkeypatch.setattr(where[what], full)
    taking = SessionLimits(image_bytes=1, image_pixels=1)
    with pytest.raises(CheckpointError, match=f"^{what} in .* could not be loaded on cpu in float32 .*; use --dtype"):
        backends.load(ServerSettings(model=folder, limits=taking))


async def test_an_image_gives_every_feature_projected_with_its_grid_embedding(folder: Path, codec: Codec) -> None:
    backend = backends.load(
        ServerSettings(model=folder, limits=SessionLimits(image_bytes=100_000, image_pixels=1_000_000))
    )
    assert backend.view_encoder is not None
    checkpoint = Checkpoint.open(folder)
    tower, weight = Tower(checkpoint), checkpoint.projector_tensors()["vit_large_projector.weight"].numpy()
    pixels = np.random.default_rng(8).standard_normal((3, 336, 336)).astype(np.float32)
    for px, grid in ((336, GRID), (224, CROP_GRID)):
        view = np.ascontiguousarray(pixels[:, :px, :px])
        cells = np.arange(grid**2)
        wanted = tower.encode(view[None])[0] @ weight.T + codec.grid_embedding(grid, cells)
        (found,) = backend.view_encoder.encode([view])
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    await backend.engine.stop()


def test_a_codec_of_another_shape_is_refused(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(CheckpointError, match="features of 64 and embeds 32"):
        SplitAssembler(
            config=checkpoint.config,
            codecs={"id": Codec(fake_weights(D=64, H=H))},
            projector=Projector(checkpoint),
            tokenizer=load_tokenizer(checkpoint),
            embed=lambda ids: np.zeros((len(ids), H), np.float32),
        )


def test_stop_tokens_come_from_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    ends = load_tokenizer(checkpoint).convert_tokens_to_ids("<|im_end|>")
    assert ends in stop_tokens(checkpoint)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 5]}')
    assert stop_tokens(Checkpoint.open(tmp_path)) == [3, 5]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "none"}')
    with pytest.raises(CheckpointError, match="generation_config"):
        stop_tokens(Checkpoint.open(tmp_path))
