import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from lab import fake
from lab.checkpoint import Halves, split
from lab.nano.tokenizer import CHAT_TEMPLATE
from shared.model.checkpoint import Checkpoint, CheckpointError
from shared.model.projector import Projector
from shared.model.prompt import Layout, Turn, build, load_tokenizer
from shared.model.tower import Tower


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(tmp_path_factory.mktemp("whole")) / "model"
    fake.write(path, tied=request.param, dtype=torch.bfloat16)
    (path / "codec.json").write_text('{"version": 1}')
    save_file({"table": torch.arange(6)}, path / "codec.safetensors")
    return path


@pytest.fixture(scope="module")
def halves(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Halves:
    return split(whole, Path(tmp_path_factory.mktemp("halves")))


def names(file: Path) -> set[str]:
    with safe_open(file, framework="pt") as opened:
        return set(opened.keys())


def test_both_halves_carry_the_identity_of_the_whole(whole: Path, halves: Halves) -> None:
    opened = Checkpoint.open(whole)
    for side in ("device", "server"):
        half = Checkpoint.open(halves.device.parent, side)  # the directory of both is enough
        assert half.side == side
        assert (
            (half.model_id, half.codec_id) == (opened.model_id, opened.codec_id) == (halves.model_id, halves.codec_id)
        )
        assert half.config == opened.config


def test_the_device_holds_the_tower_and_nothing_of_the_decoder(whole: Path, halves: Halves) -> None:
    found = names(halves.device / "model.safetensors")
    assert found == {name for name in names(whole / "model.safetensors") if name.startswith("vision_model.")}
    files = {file.name for file in halves.device.iterdir()}
    assert files == {"config.json", "model.safetensors", "codec.json", "codec.safetensors", "split.json"}


def test_the_server_holds_everything_else(whole: Path, halves: Halves) -> None:
    decoder, projector = names(halves.server / "model.safetensors"), names(halves.server / "projector.safetensors")
    assert decoder | projector | names(halves.device / "model.safetensors") == names(whole / "model.safetensors")
    assert not decoder & projector
    opened = Checkpoint.open(halves.server, "server")
    assert opened.tensors("vision_model.") == {}
    expected = Checkpoint.open(whole).tensors(("model.", "lm_head.", "vit_large_projector."))
    found = opened.tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_tower_and_projector_are_the_same_from_a_half(whole: Path, halves: Halves) -> None:
    a, b = Tower(Checkpoint.open(whole, "device")), Tower(Checkpoint.open(halves.device))
    assert all(torch.equal(t, b.model.state_dict()[name]) for name, t in a.model.state_dict().items())
    assert (Projector(Checkpoint.open(whole)).weight == Projector(Checkpoint.open(halves.server)).weight).all()


def test_transformers_loads_the_server_half_as_it_is(whole: Path, halves: Halves) -> None:
    model, report = Qwen3ForCausalLM.from_pretrained(halves.server, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    checkpoint = Checkpoint.open(whole, "server")
    other = Qwen3ForCausalLM.from_pretrained(
        None,
        config=Qwen3Config(**checkpoint.config.text),
        state_dict=checkpoint.decoder_tensors(),
        dtype=torch.bfloat16,
    )
    ids = torch.tensor([[1, 20, 30, 40]])
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, other(ids).logits)


def test_prompts_are_the_same_from_the_server_half(whole: Path, halves: Halves) -> None:
    turns, layouts = [Turn(role="user", text="what is in the picture?")], [Layout(whole=2)]
    a, b = (build(load_tokenizer(Checkpoint.open(path)), turns, layouts) for path in (whole, halves.server))
    assert a.ids == b.ids
    assert AutoTokenizer.from_pretrained(halves.server).chat_template == CHAT_TEMPLATE


def test_the_wrong_half_is_refused(halves: Halves) -> None:
    with pytest.raises(CheckpointError, match="is the device half of a model; the server half is needed"):
        Checkpoint.open(halves.device, "server")
    with pytest.raises(CheckpointError, match="holds halves of a model; say which"):
        Checkpoint.open(halves.device.parent)
    with pytest.raises(CheckpointError, match="split the whole one"):
        split(halves.server, halves.server / "again")


def test_the_codec_of_another_model_is_refused(halves: Halves, tmp_path: Path) -> None:
    other = shutil.copytree(halves.device, tmp_path / "device")
    (other / "codec.json").write_text('{"version": 2}')
    with pytest.raises(CheckpointError, match="belongs to another model"):
        _ = Checkpoint.open(other).codec_id


def test_a_later_format_is_refused(halves: Halves, tmp_path: Path) -> None:
    other = shutil.copytree(halves.device, tmp_path / "device")
    mark = json.loads((other / "split.json").read_text())
    (other / "split.json").write_text(json.dumps(mark | {"format": 9}))
    with pytest.raises(CheckpointError, match="format 9, this version reads 1"):
        Checkpoint.open(other)


def test_nothing_is_overwritten_and_nothing_half_written_remains(whole: Path, halves: Halves, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="remove it or split into another directory"):
        split(whole, halves.device.parent)
    bare = shutil.copytree(whole, tmp_path / "bare")
    (bare / "codec.json").unlink()
    with pytest.raises(CheckpointError, match=r"codec\.json"):
        split(bare, tmp_path / "out")
    assert not (tmp_path / "out").exists()
