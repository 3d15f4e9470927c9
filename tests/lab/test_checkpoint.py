from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from tofc.codec.fake import fake_weights
from tofc.errors import CheckpointError, ResourceError, UsageError
from tofc.model.checkpoint import Checkpoint
from tofc.model.feature_codecs import codec_hash
from tofc.model.projector import Projector
from tofc.model.prompt import PictureLayout, Turn, build, load_tokenizer
from tofc.model.tower import Tower
from tofc_lab.checkpoint import fake
from tofc_lab.checkpoint.hub import locate
from tofc_lab.checkpoint.special_tokens import CHAT_TEMPLATE
from tofc_lab.checkpoint.split import Halves, split


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(tmp_path_factory.mktemp("whole")) / "model"
    fake.write(path, tied=request.param, dtype=torch.bfloat16)
    fake_weights(D=128, H=32).save(path)
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
        half = Checkpoint.open(halves.device.parent, side)  # the folder of both is enough
        assert half.side == side
        assert (
            (half.model_id, half.codec_id) == (opened.model_id, opened.codec_id) == (halves.model_id, halves.codec_id)
        )
        assert half.config == opened.config


def test_the_device_holds_the_tower_and_nothing_of_the_decoder(whole: Path, halves: Halves) -> None:
    found = names(halves.device / "model.safetensors")
    assert found == {name for name in names(whole / "model.safetensors") if name.startswith("vision_model.")}
    files = {file.name for file in halves.device.iterdir()}
    assert files == {"config.json", "model.safetensors", "codec.json", "codec.safetensors", "split.json", "SHA256SUMS"}


def test_the_device_gets_the_list_of_image_files_that_answer_as_well(whole: Path, tmp_path: Path) -> None:
    listed = tmp_path / "model"
    shutil.copytree(whole, listed)
    (listed / "image_files.json").write_text('{"presets": {}}')
    made = split(listed, tmp_path / "halves")
    assert (made.device / "image_files.json").read_text() == '{"presets": {}}'
    assert "image_files.json" in (made.device / "SHA256SUMS").read_text()
    assert not (made.server / "image_files.json").exists()
    fake_weights(D=128, H=32, seed=9).save(tmp_path / "codec")
    split(listed, tmp_path / "halves", codecs={"default": tmp_path / "codec"})
    assert not (made.device / "image_files.json").exists(), "it was about the codec before"
    assert "image_files.json" not in (made.device / "SHA256SUMS").read_text()


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


def test_the_index_lists_the_decoder_only(halves: Halves) -> None:
    """VLLM loads every .safetensors of a folder unless an index leaves it out."""
    listed = json.loads((halves.server / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(listed) == names(halves.server / "model.safetensors") and set(listed.values()) == {"model.safetensors"}


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
    turns, layouts = [Turn(role="user", text="what is in the picture?")], [PictureLayout(whole=2)]
    a, b = (build(load_tokenizer(Checkpoint.open(path)), turns, layouts) for path in (whole, halves.server))
    assert a.ids == b.ids
    assert AutoTokenizer.from_pretrained(halves.server).chat_template == CHAT_TEMPLATE


def test_the_wrong_half_is_refused(halves: Halves) -> None:
    with pytest.raises(CheckpointError, match="is the device half of a model; the server half is needed"):
        Checkpoint.open(halves.device, "server")
    with pytest.raises(CheckpointError, match="holds both halves of a model; name the one to open"):
        Checkpoint.open(halves.device.parent)
    with pytest.raises(CheckpointError, match="split the whole one"):
        split(halves.server, halves.server / "again")


def test_the_codec_of_another_model_is_refused(halves: Halves, tmp_path: Path) -> None:
    other = shutil.copytree(halves.device, tmp_path / "device")
    (other / "codec.json").write_text('{"version": 2}')
    with pytest.raises(CheckpointError, match="but this half was split with the codec"):
        _ = Checkpoint.open(other).codec_id


def test_a_later_format_is_refused(halves: Halves, tmp_path: Path) -> None:
    other = shutil.copytree(halves.device, tmp_path / "device")
    mark = json.loads((other / "split.json").read_text())
    (other / "split.json").write_text(json.dumps(mark | {"format": 9}))
    with pytest.raises(CheckpointError, match="format must be 1, got 9"):
        Checkpoint.open(other)


def test_halves_of_another_model_are_kept_and_no_partial_half_remains(
    whole: Path, halves: Halves, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    fake.write(other, seed=1)
    fake_weights(D=128, H=32).save(other)
    with pytest.raises(UsageError, match="remove it or split into another folder"):
        split(other, halves.device.parent)
    assert Checkpoint.open(halves.device).model_id == halves.model_id
    bare = shutil.copytree(whole, tmp_path / "bare")
    (bare / "codec.json").unlink()
    with pytest.raises(CheckpointError, match=r"codec\.json"):
        split(bare, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert split(bare, tmp_path / "out", codecs={"default": whole}).codec_id == halves.codec_id


def sums(half: Path) -> dict[str, str]:
    lines = (line.split("  ", 1) for line in (half / "SHA256SUMS").read_text().splitlines())
    return {name: digest for digest, name in lines}


def test_every_file_has_its_checksum(halves: Halves) -> None:
    for half in (halves.device, halves.server):
        found = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in half.iterdir() if f.name != "SHA256SUMS"}
        assert found == sums(half)


def test_splitting_again_changes_the_codec_and_nothing_else(whole: Path, tmp_path: Path) -> None:
    first = split(whole, tmp_path / "halves", shard_bytes=100_000)
    weights = [file for half in (first.device, first.server) for file in half.glob("[mp]*.safetensors")]
    before = [file.stat().st_mtime_ns for file in weights]
    fake_weights(D=128, H=32, seed=9).save(tmp_path / "codec")
    second = split(whole, tmp_path / "halves", codecs={"default": tmp_path / "codec"})
    assert second.model_id == first.model_id and second.codec_id != first.codec_id
    assert [file.stat().st_mtime_ns for file in weights] == before
    for side in ("device", "server"):
        half = Checkpoint.open(tmp_path / "halves", side)
        assert half.codec_id == second.codec_id
        assert sums(half.path)["codec.json"] == hashlib.sha256((half.path / "codec.json").read_bytes()).hexdigest()


def test_further_codecs_are_copied_added_and_replaced(whole: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(whole, tmp_path / "own"))
    for seed, folder in enumerate((own / "codecs" / "first", tmp_path / "second", tmp_path / "third"), 20):
        fake_weights(D=128, H=32, seed=seed).save(folder)
    split(own, tmp_path / "halves")
    halves = split(own, tmp_path / "halves", codecs={"second-1": tmp_path / "second", "first": tmp_path / "third"})
    for side in ("device", "server"):
        for name in halves.codecs:
            half = Checkpoint.open(tmp_path / "halves", side, feature_codec=name)
            assert half.codec_id == halves.codecs[name]
        assert half.codec_id_of("default") == halves.codec_id == Checkpoint.open(whole).codec_id
        found = {file.relative_to(half.path).as_posix() for file in half.path.rglob("*") if file.is_file()}
        assert found == sums(half.path).keys() | {"SHA256SUMS"}
        for name, digest in sums(half.path).items():
            assert hashlib.sha256((half.path / name).read_bytes()).hexdigest() == digest
    assert halves.codecs == {"first": codec_hash(tmp_path / "third"), "second-1": codec_hash(tmp_path / "second")}
    again = split(own, tmp_path / "halves")  # names its own codec only: the other one is removed
    assert again.codecs.keys() == {"first"} and not (again.server / "codecs" / "second-1").exists()
    with pytest.raises(
        CheckpointError, match=r"must name a codec of .*, got 'second-1'; its codecs are default, first"
    ):
        Checkpoint.open(again.server, feature_codec="second-1")


def test_a_codec_added_to_a_half_must_be_of_its_model(whole: Path, tmp_path: Path) -> None:
    halves = split(whole, tmp_path)
    fake_weights(D=128, H=32, seed=30).save(halves.device / "codecs" / "added", model_id=halves.model_id)
    fake_weights(D=128, H=32, seed=31).save(halves.device / "codecs" / "foreign", model_id="0" * 16)
    half = Checkpoint.open(halves.device)
    assert len(half.codec_id_of("added")) == 16
    with pytest.raises(CheckpointError, match=r"codecs/foreign was trained for the model 0{16}"):
        half.codec_id_of("foreign")


@pytest.mark.parametrize("name", ["Upper", "a_b", "..", "a/b", ""])
def test_a_codec_needs_a_plain_name(whole: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="must consist of a-z, 0-9 and -"):
        split(whole, tmp_path / "out", codecs={name: whole})
    assert not (tmp_path / "out").exists()


def test_an_interrupted_split_continues_with_the_next_file(whole: Path, halves: Halves, tmp_path: Path) -> None:
    reported: list[tuple[str, int, int]] = []

    def stop(what: str, done: int, total: int) -> None:
        reported.append((what, done, total))
        if what == "server" and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        split(whole, tmp_path / "halves", shard_bytes=15_000, progress=stop)
    assert [file.name for file in (tmp_path / "halves").iterdir() if not file.name.startswith(".")] == ["device"]
    assert {what for what, *_ in reported} == {"hashing", "device", "server"}
    complete = sums(tmp_path / "halves" / ".server.partial")
    assert complete
    kept = {name: (tmp_path / "halves" / ".server.partial" / name).stat().st_mtime_ns for name in complete}
    reported.clear()
    again = split(whole, tmp_path / "halves", shard_bytes=15_000, progress=lambda *one: reported.append(one))
    assert {what for what, *_ in reported} == {"server"}  # neither hashed nor copied again
    assert reported[-1][1] == reported[-1][2]
    assert {name: (again.server / name).stat().st_mtime_ns for name in kept} == kept
    assert (again.model_id, again.codec_id) == (halves.model_id, halves.codec_id)
    assert {file.name for file in (tmp_path / "halves").iterdir()} == {"device", "server"}
    expected = Checkpoint.open(halves.server).tensors()
    found = Checkpoint.open(again.server).tensors()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    _, report = Qwen3ForCausalLM.from_pretrained(again.server, output_loading_info=True)  # in shards
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_the_split_of_a_changed_checkpoint_is_not_resumed(whole: Path, tmp_path: Path) -> None:
    own = shutil.copytree(whole, tmp_path / "own")

    def stop(what: str, done: int, total: int) -> None:
        if what == "server":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        split(own, tmp_path / "halves", progress=stop)
    fake.write(own, seed=5, dtype=torch.bfloat16, tied=Checkpoint.open(own).config.tied)
    with pytest.raises(UsageError, match="holds half of the model"):
        split(own, tmp_path / "halves")


def test_a_codec_of_another_model_is_refused_before_anything_is_written(whole: Path, tmp_path: Path) -> None:
    own = shutil.copytree(whole, tmp_path / "own")
    fake_weights(D=128, H=32).save(own, model_id="0123456789abcdef")
    with pytest.raises(
        CheckpointError, match=r"was trained for the model 0123456789abcdef, but this model is [0-9a-f]{16}"
    ):
        split(own, tmp_path / "halves")
    with pytest.raises(CheckpointError, match="train a codec for it"):
        _ = Checkpoint.open(own).codec_id
    fake_weights(D=64, H=32).save(own)
    with pytest.raises(CheckpointError, match="features of 64 and a decoder 32 wide, this model has 128 and 32"):
        split(own, tmp_path / "halves")
    assert not any((tmp_path / "halves" / side).exists() for side in ("device", "server"))


def test_too_little_disk_is_an_error_before_anything_is_written(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ResourceError, match=r"the split needs [\d.]+ MB of disk and .* has 0\.0 MB free"):
        split(whole, tmp_path / "halves")
    with pytest.raises(ResourceError, match="free some space or name another folder"):
        fake.write(tmp_path / "fake")
    assert not list(tmp_path.iterdir())


def test_existing_files_need_no_disk_again(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 0

    def stop(what: str, done: int, total: int) -> None:
        nonlocal needed
        if what == "server" and done > (needed := total) / 2:
            raise KeyboardInterrupt

    fake.write(tmp_path / "fake")
    with pytest.raises(KeyboardInterrupt):
        split(whole, tmp_path / "halves", shard_bytes=15_000, progress=stop)
    usage = shutil.disk_usage(tmp_path)._replace(free=needed * 3 // 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    split(whole, tmp_path / "halves", shard_bytes=15_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    fake.write(tmp_path / "fake")


def test_a_damaged_codec_is_refused_before_anything_is_copied(whole: Path, tmp_path: Path) -> None:
    own = shutil.copytree(whole, tmp_path / "own")
    whole_codec = (own / "codec.safetensors").read_bytes()
    (own / "codec.safetensors").write_bytes(whole_codec[:-500])
    with pytest.raises(ValueError, match=r"codec\.safetensors"):
        split(own, tmp_path / "halves")
    assert not (tmp_path / "halves").exists()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e4m3fn])
def test_a_tensor_of_an_unsupported_type_is_named(whole: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    own = shutil.copytree(whole, tmp_path / "own")
    tensors = load_file(own / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(dtype)
    save_file(tensors, own / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"dtype of model\.norm\.weight must be one of BF16, F16, F32, got (I8|F64|F8_E4M3)"
    ):
        split(own, tmp_path / "halves")


def test_an_unexpected_tensor_and_a_truncated_shard_are_named(whole: Path, tmp_path: Path) -> None:
    own = shutil.copytree(whole, tmp_path / "own")
    tensors = load_file(own / "model.safetensors")
    save_file(tensors | {"model.layers.7.mlp.up_proj.weight": torch.zeros(3, 4)}, own / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has a tensor model\.layers\.7\.mlp\.up_proj\.weight \(3, 4\), which"):
        split(own, tmp_path / "halves")
    with (own / "model.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 7)
    with pytest.raises(CheckpointError, match="is truncated"):
        split(own, tmp_path / "halves")


def test_a_tensor_that_its_shard_lacks_is_named_with_its_shape(whole: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    many = tmp_path / "many"
    fake.write(many, shard_bytes=50_000)
    name = "model.norm.weight"
    shard = many / json.loads((many / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(shard)
    del tensors[name]
    save_file(tensors, shard)
    with pytest.raises(
        CheckpointError, match=r"has no tensor model\.norm\.weight, which its configuration asks for with shape \(32,\)"
    ):
        Checkpoint.open(many)


def test_a_tokenizer_that_lacks_a_token_is_refused(whole: Path, tmp_path: Path) -> None:
    own = shutil.copytree(whole, tmp_path / "own")
    tokenizer = own / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<patch_newline>", "<patch_other>"))
    with pytest.raises(CheckpointError, match="no token <patch_newline>"):
        split(own, tmp_path / "halves")
    shutil.copyfile(whole / "tokenizer.json", tokenizer)
    tokenizer.write_text(tokenizer.read_text().replace("</think>", "</thought>"))
    with pytest.raises(CheckpointError, match="no token </think>"):
        split(own, tmp_path / "halves")


def test_a_checkpoint_in_shards_is_the_same_as_in_one_file(tmp_path: Path) -> None:
    fake.write(tmp_path / "one")
    fake.write(tmp_path / "many", shard_bytes=50_000)
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 3
    one, many = Checkpoint.open(tmp_path / "one"), Checkpoint.open(tmp_path / "many")
    assert one.model_id == many.model_id


def test_a_model_is_a_folder_or_in_the_hub_s_cache(tmp_path: Path) -> None:
    assert locate(str(tmp_path)) == tmp_path
    with pytest.raises(CheckpointError, match=r"is not a folder; give a checkpoint's folder or its name on the hub"):
        locate(str(tmp_path / "absent"))
    with pytest.raises(
        CheckpointError, match=r"nobody/nothing is neither a folder nor in the hub's cache .* run once without --off"
    ):
        locate("nobody/nothing", offline=True)


def test_a_model_in_the_hub_s_cache_is_split_offline(
    whole: Path, halves: Halves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "hub" / "models--some--model"
    revision = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(whole, cached / "snapshots" / revision)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = locate("some/model", offline=True)
    assert split(found, tmp_path / "halves").model_id == halves.model_id
