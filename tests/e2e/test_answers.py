"""The real client, the real server and the shipped model: answers over the network are those of the model alone."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL.Image import Image
from transformers import Qwen3Config, Qwen3ForCausalLM

from device_client.compute import Compute
from device_client.encoder import Encoder, TowerEncoder
from device_client.link import Target
from device_client.rate import RateChoice
from device_client.report import Report
from device_client.sampling import Sampling
from device_client.session import Session
from tests.e2e.conftest import MODEL, PICTURES, ROOT, ServerThread
from tofc.codec.codec import Codec
from tofc.model import tower
from tofc.model.checkpoint import Checkpoint
from tofc.model.mapped_tensors import MappedTensors
from tofc.model.open_image import open_image
from tofc.model.projector import Projector
from tofc.model.prompt import PictureLayout, Turn, build, load_tokenizer
from tofc.model.tensor_files import StoredTensor
from tofc.model.views import plan, views

Asked = list[dict[str, str]]


async def ask_all(server: ServerThread, encoder: Encoder, asked: Asked) -> list[Report]:
    async with Session(Target(address=server.address), encoder) as session:
        opened = {name: session.open(PICTURES / name) for name in {line["image"] for line in asked}}
        return [await session.ask([opened[line["image"]]], line["question"]).result() for line in asked]


def in_one_process(
    encoder: TowerEncoder, asked: Asked, *, compressed: bool, sent: Callable[[Image], Image] = lambda image: image
) -> list[str]:
    """Answer with the same model without a network: transformers' own greedy `generate` on the same embeddings.

    `sent` changes a picture before views are cut from it, as an image codec does.
    """
    checkpoint = Checkpoint.open(MODEL)
    config, codec, projector = checkpoint.config, Codec.load(checkpoint.codec_path), Projector(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    decoder = Qwen3ForCausalLM(Qwen3Config(**config.text)).eval()
    decoder.load_state_dict({name: tensor.float() for name, tensor in checkpoint.decoder_tensors().items()})
    tower, _ = encoder._loaded()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    embedded: dict[str, tuple[PictureLayout, np.ndarray]] = {}
    answers = []
    for line in asked:
        if line["image"] not in embedded:
            image = sent(open_image(PICTURES / line["image"]))
            parts = []
            for view in views(image, config.rule):
                features = tower.encode(view.pixels[None])[0]
                cells, grid = np.arange(len(features)), round(len(features) ** 0.5)
                if compressed:
                    decoded = codec.decode(codec.encode(features))
                    features, cells = decoded.features, decoded.positions
                parts.append(projector.project(features) + codec.grid_embedding(grid, cells))
            cut = plan(*image.size, config.rule)
            layout = PictureLayout(
                rows=cut.rows, columns=cut.columns, crops=tuple(len(p) for p in parts[:-1]), whole=len(parts[-1])
            )
            embedded[line["image"]] = layout, np.concatenate(parts)
        layout, visual = embedded[line["image"]]
        prompt = build(tokenizer, [Turn(role="user", text=line["question"])], [layout])
        embeds = decoder.get_input_embeddings()(torch.tensor(prompt.ids)).detach()
        embeds[torch.tensor(prompt.feature_positions)] = torch.from_numpy(visual)
        with torch.inference_mode():
            new = decoder.generate(
                inputs_embeds=embeds[None],
                attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
                max_new_tokens=16,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=end,
            )[0]
        answers.append(tokenizer.decode(new, skip_special_tokens=True))
    return answers


def test_answers_over_the_network_are_those_of_one_process(
    server: ServerThread, encoder: TowerEncoder, asked: Asked
) -> None:
    reports = asyncio.run(ask_all(server, encoder, asked))
    assert [r.answer for r in reports] == in_one_process(encoder, asked, compressed=True)


def test_most_answers_are_right_and_compression_costs_little(
    server: ServerThread, encoder: TowerEncoder, asked: Asked
) -> None:
    reports = asyncio.run(ask_all(server, encoder, asked))
    right = sum(r.answer == line["answer"] for r, line in zip(reports, asked, strict=True))
    plain = in_one_process(encoder, asked, compressed=False)
    right_plain = sum(answer == line["answer"] for answer, line in zip(plain, asked, strict=True))
    assert right >= 0.7 * len(asked)
    assert right >= right_plain - 0.1 * len(asked)


def test_a_picture_is_sent_once_and_small(server: ServerThread, encoder: TowerEncoder, asked: Asked) -> None:
    asked = [line for line in asked if line["image"] != "picture-11.jpg"]  # the large one
    fresh = ServerThread()
    try:
        reports = asyncio.run(ask_all(fresh, encoder, asked))
    finally:
        fresh.stop()
    sent: dict[str, list[int]] = defaultdict(list)
    for report, line in zip(reports, asked, strict=True):
        sent[line["image"]].append(report.bytes_picture)
        assert report.views == 1
        assert report.bytes_up is not None
        assert report.bytes_up > report.bytes_picture
    assert all(first > 0 and not any(later) for first, *later in sent.values())
    assert np.mean([first for first, *_ in sent.values()]) <= 25


def test_a_large_picture_goes_in_crops(server: ServerThread, encoder: TowerEncoder, asked: Asked) -> None:
    lines = [line for line in asked if line["image"] == "picture-11.jpg"]
    reports = asyncio.run(ask_all(server, encoder, lines))
    assert reports[0].views == 3 * 2 + 1
    assert reports[0].features == 6 * 4 + 36  # of the codec's configuration and its default preset


def test_crops_at_preset_low_are_not_merged_and_take_fewer_bytes(
    encoder: TowerEncoder, asked: Asked, tmp_path: Path
) -> None:
    """The positions of merged features would cost more than the indices that merging saves."""
    low = TowerEncoder.open(MODEL, RateChoice(preset="low"))
    lines, fresh = [line for line in asked if line["image"] == "picture-11.jpg"], ServerThread()
    try:
        of_low, of_default = (asyncio.run(ask_all(fresh, one, lines)) for one in (low, encoder))
    finally:
        fresh.stop()
    assert [of_low[0].features, of_default[0].features] == [6 * 16 + 36, 6 * 4 + 36]
    assert [of_low[0].views_sent, of_default[0].views_sent] == [7, 7]  # two pictures to the server
    assert sum(r.answer == line["answer"] for r, line in zip(of_low, lines, strict=True)) >= len(lines) - 1

    folder = Path(shutil.copytree(MODEL, tmp_path / "nano"))
    values = json.loads((folder / "codec.json").read_text())
    (folder / "codec.json").write_text(json.dumps(values | {"crop_features": 4}))  # one number, as in older files
    merged = TowerEncoder.open(folder, RateChoice(preset="low"))
    merged.load()
    sent = [one for one in merged.encode(open_image(PICTURES / "picture-11.jpg")) if one.joins]
    assert of_low[0].bytes_picture < sum(len(one.joined or one.packet) for one in sent)


def test_a_budget_is_kept_and_most_answers_stay_right(server: ServerThread, asked: Asked) -> None:
    asked = [line for line in asked if line["image"] != "picture-11.jpg"]  # the large one, which needs more
    tight = TowerEncoder.open(MODEL, RateChoice(budget_bytes=24))
    tight.load()
    reports = asyncio.run(ask_all(server, tight, asked))
    sent = [report.bytes_picture for report in reports if report.bytes_picture]
    assert max(sent) <= 24
    assert np.mean(sent) > 17  # most of the budget is used
    right = np.mean([r.answer.strip() == line["answer"] for r, line in zip(reports, asked, strict=True)])
    assert right > 0.75


def test_two_clients_at_once(server: ServerThread, encoder: TowerEncoder, asked: Asked) -> None:
    async def both() -> list[list[Report]]:
        other = TowerEncoder.open(MODEL)
        return await asyncio.gather(ask_all(server, encoder, asked[:12]), ask_all(server, other, asked[:12]))

    first, second = asyncio.run(both())
    assert [r.answer for r in first] == [r.answer for r in second]


def test_sampling_repeats_with_its_seed(server: ServerThread, encoder: TowerEncoder) -> None:
    async def twice() -> list[str]:
        async with Session(Target(address=server.address), encoder) as session:
            picture = session.open(MODEL / "example.jpg")
            drawn = Sampling(temperature=3.0, seed=7, max_tokens=12)
            return [(await session.ask([picture], "what is this?", sampling=drawn).result()).answer for _ in range(2)]

    first, second = asyncio.run(twice())
    assert first == second


def test_an_abandoned_question_stops_on_the_server(encoder: TowerEncoder) -> None:
    server = ServerThread(
        engine_parallel=1, engine_queue=1
    )  # one runs and one waits: a third is refused while the first runs

    async def give_up() -> list[Report]:
        async with Session(Target(address=server.address), encoder) as session:
            picture = session.open(MODEL / "example.jpg")
            endless = Sampling(temperature=5.0, seed=1, max_tokens=1000)
            answer = session.ask([picture], "what is this?", sampling=endless)
            async for _ in answer:
                break
            await answer.aclose()
            two = [session.ask([picture], "is there a dog?").result() for _ in range(2)]
            return await asyncio.gather(*two)

    try:
        assert {report.answer for report in asyncio.run(give_up())} <= {"yes", "no"}
    finally:
        server.stop()


def test_a_device_needs_no_transformers(server: ServerThread) -> None:
    """So the tower's computation cannot depend on it."""
    script = (
        "import sys; sys.modules['transformers'] = sys.modules['tokenizers'] = None\n"
        "from device_client.cli import app; app()"
    )
    words = ["ask", MODEL / "example.jpg", "what number is on the sign?", "--json"]
    words += ["--server", server.address, "--model", MODEL]
    done = subprocess.run([sys.executable, "-c", script, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["answer"], report["mode"]) == ("42", "features")


def test_the_device_reads_no_decoder_and_the_server_no_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    tensors = Checkpoint.tensors

    def spy(self: Checkpoint, prefix: str | tuple[str, ...] = "") -> dict[str, torch.Tensor]:
        found = tensors(self, prefix)
        read.extend(found)
        return found

    class Spy(MappedTensors):
        def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
            read.extend(stored)
            super().__init__(stored)

    monkeypatch.setattr(Checkpoint, "tensors", spy)
    monkeypatch.setattr(tower, "MappedTensors", Spy)
    mapped = StoredTensor.mapped
    monkeypatch.setattr(StoredTensor, "mapped", lambda stored: read.append(stored.stored_name) or mapped(stored))
    for backend in ("numpy", "torch"):
        TowerEncoder.open(MODEL, compute=Compute(backend=backend)).load()
        assert read
        assert all(name.startswith("vision_model.") for name in read)
        read.clear()
    ServerThread().stop()
    assert read
    assert not any(name.startswith("vision_model.") for name in read)
