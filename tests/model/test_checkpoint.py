from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import run

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from tofc.codec.fake import fake_weights
from tofc.errors import CheckpointError
from tofc.model import tensor_files
from tofc.model.checkpoint import Checkpoint, ModelIdentity
from tofc.model.config import SplitConfig
from tofc.model.perception_encoder import PerceptionEncoder
from tofc.model.released_names import to_released
from tofc.model.tower import Tower
from tofc_lab.checkpoint import fake
from tofc_lab.checkpoint.split import split


@pytest.fixture
def own(tiny: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny checkpoint, which a test may change."""
    return Path(shutil.copytree(tiny, tmp_path / "own"))


def edit(file: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_the_identity_of_a_half_needs_no_tensors(own: Path, tmp_path: Path) -> None:
    fake_weights(D=128, H=32).save(own)
    whole = Checkpoint.open(own)
    split(own, tmp_path / "halves")
    for half in ("device", "server"):
        for file in (tmp_path / "halves" / half).glob("*.safetensors"):
            file.unlink()
    for path in (own, tmp_path / "halves", tmp_path / "halves" / "device", tmp_path / "halves" / "server"):
        identity = ModelIdentity.read(path)
        assert (identity.model_id, identity.codec_id) == (whole.model_id, whole.codec_id)
        assert identity.config.rule == whole.config.rule and identity.config.tower == whole.config.tower
    with pytest.raises(CheckpointError, match="has no config"):
        ModelIdentity.read(tmp_path)


def test_the_released_configuration_is_read() -> None:
    text = {
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 12288,
        "vocab_size": 151936,
    }
    config = SplitConfig.parse(
        {
            "architectures": ["StepVLForConditionalGeneration"],
            "vision_config": {"width": 1536, "layers": 47, "heads": 16, "ls_init_value": 0.1, "image_size": 728},
            "text_config": text,
        }
    )
    assert (config.global_size, config.crop_size, config.max_side, config.image_token_id) == (728, 504, 3024, 151679)
    assert (config.feature_dim, config.hidden, config.tied) == (6144, 4096, False)
    assert [config.grid(px) for px in (728, 504, 336, 224)] == [13, 9, 6, 4]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("architectures", ["LlamaForCausalLM"], "architectures must hold 'StepVLForConditionalGeneration', got"),
        ("text_config", None, "no object 'text_config'"),
        ("global_size", 337, "global_size must be a multiple of the patch size 14, got 337"),
        ("crop_size", "224", "crop_size must be a positive whole number, got '224'"),
        ("image_token_id", 10**6, "inside the vocabulary, got 1000000"),
        ("understand_projector_stride", 4, "understand_projector_stride must be 2"),
    ],
)
def test_a_wrong_configuration_says_what_is_wrong(own: Path, key: str, value: object, message: str) -> None:
    raw = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(raw | {key: value}))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(own)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_act": "gelu"}, "vision_config.hidden_act must be 'quick_gelu', as in STEP3-VL's tower, got 'gelu'"),
        ({"use_cls_token": True}, "vision_config.use_cls_token must be False, as in STEP3-VL's tower, got True"),
        ({"use_ln_post": True}, "vision_config.use_ln_post must be False, as in STEP3-VL's tower, got True"),
        ({"use_rope2d": False}, "vision_config.use_rope2d must be True, as in STEP3-VL's tower, got False"),
        ({"num_channels": 4}, "vision_config.num_channels must be 3, as in STEP3-VL's tower, got 4"),
        ({"rope_theta": 100.0}, "vision_config.rope_theta must be 10000, as in STEP3-VL's tower, got 100.0"),
        (
            {"rope_parameters": {"rope_type": "default"}},
            "vision_config.rope_type must be 'axial', as in STEP3-VL's tower, got 'default'",
        ),
        (
            {"rope_parameters": {"rope_theta": 1e6}},
            "vision_config.rope_theta must be 10000, as in STEP3-VL's tower, got 1000000.0",
        ),
    ],
)
def test_a_tower_with_another_computation_is_refused(own: Path, settings: dict[str, object], message: str) -> None:
    raw = json.loads((own / "config.json").read_text())
    raw["vision_config"] |= {"hidden_act": "quick_gelu", "rope_parameters": {"rope_type": "axial", "rope_theta": 1e4}}
    (own / "config.json").write_text(json.dumps(raw))
    Checkpoint.open(own)
    raw["vision_config"] |= settings
    (own / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(own)


@pytest.mark.parametrize("key", ["layer_norm_eps", "mlp_ratio"])
def test_the_tower_follows_its_configuration(own: Path, key: str) -> None:
    pixels = np.ones((1, 3, 112, 112), np.float32)
    before = Tower(Checkpoint.open(own, "device")).encode(pixels)
    raw = json.loads((own / "config.json").read_text())
    raw["vision_config"][key] = {"layer_norm_eps": 0.1, "mlp_ratio": 3.0}[key]
    (own / "config.json").write_text(json.dumps(raw))
    if key == "mlp_ratio":
        edit(own / "model.safetensors", narrower)
    assert not np.allclose(before, Tower(Checkpoint.open(own, "device")).encode(pixels), rtol=1e-3)


def narrower(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if "mlp.c_fc" in name:
            tensors[name] = tensor[:96].clone()
        elif name.endswith("mlp.c_proj.weight"):
            tensors[name] = tensor[:, :96].clone()


@pytest.mark.parametrize("tied", [False, True])
def test_export_and_loading_are_exact_inverses(tmp_path: Path, tied: bool) -> None:
    fake.write(tmp_path, tied=tied)
    checkpoint = Checkpoint.open(tmp_path)
    config, stored = checkpoint.config, checkpoint.tensors()
    assert ("lm_head.weight" in stored) is not tied
    tower = PerceptionEncoder(config.tower.values)
    tower.load_state_dict(Tower(checkpoint).model.state_dict())
    decoder = Qwen3ForCausalLM(Qwen3Config(**config.text))
    decoder.load_state_dict(checkpoint.decoder_tensors(), strict=not tied)
    projector = {"weight": stored["vit_large_projector.weight"]}
    again = to_released(config, vision=tower.state_dict(), projector=projector, decoder=decoder.state_dict())
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], stored[name]) for name in stored)


def test_exporting_a_model_of_another_shape_is_refused(tiny: Path) -> None:
    checkpoint = Checkpoint.open(tiny)
    vision = Tower(checkpoint).model.state_dict()
    projector, decoder = {"weight": torch.zeros(32, 128)}, checkpoint.decoder_tensors()
    with pytest.raises(ValueError, match=r"vit_large_projector\.weight must have shape .*32, 128.* got .*32, 64"):
        to_released(checkpoint.config, vision=vision, projector={"weight": torch.zeros(32, 64)}, decoder=decoder)
    lacking = {k: v for k, v in decoder.items() if k != "model.norm.weight"}
    with pytest.raises(ValueError, match=r"no model\.norm\.weight"):
        to_released(checkpoint.config, vision=vision, projector=projector, decoder=lacking)
    partial = {name: tensor for name, tensor in vision.items() if "0.attn.k_proj" not in name}
    with pytest.raises(
        ValueError, match=r"in_proj_weight must have shape \(96, 32\) by the configuration, got \(64, 32\)"
    ):
        to_released(checkpoint.config, vision=partial, projector=projector, decoder=decoder)
    with pytest.raises(ValueError, match="has extra, which"):
        to_released(checkpoint.config, vision=vision, projector=projector, decoder=decoder | {"extra": torch.zeros(1)})


def test_a_prefix_before_the_vision_names_changes_nothing(own: Path) -> None:
    before = Checkpoint.open(own)
    model_id, expected = before.model_id, before.tensors()

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            if name.startswith("vi"):
                tensors[f"model.{name}"] = tensors.pop(name)

    edit(own / "model.safetensors", rename)
    after = Checkpoint.open(own)
    assert after.model_id == model_id
    assert all(torch.equal(t, expected[name]) for name, t in after.tensors().items())


def shard(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    names = sorted(tensors)
    parts = {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, chosen in parts.items():
        save_file({name: tensors[name] for name in chosen}, path / file)
    places = {name: file for file, chosen in parts.items() for name in chosen}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (path / "model.safetensors").unlink()


def test_shards_are_the_same_model(own: Path) -> None:
    whole = Checkpoint.open(own)
    model_id, expected = whole.model_id, whole.tensors()
    shard(own)
    found = Checkpoint.open(own)
    assert found.model_id == model_id
    assert all(torch.equal(t, expected[name]) for name, t in found.tensors().items())
    (own / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors does not exist"):
        Checkpoint.open(own)


def test_an_index_cannot_point_outside(own: Path) -> None:
    shard(own)
    (own / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="it must be a file name without folders"):
        Checkpoint.open(own)


def test_the_identity_depends_on_every_bit(own: Path) -> None:
    before = Checkpoint.open(own).model_id
    assert len(before) == 16 and before == Checkpoint.open(own).model_id

    def flip(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"].view(torch.int32)[0] ^= 1

    edit(own / "model.safetensors", flip)
    assert Checkpoint.open(own).model_id != before


def test_a_missing_tensor_is_named_with_what_was_expected(own: Path) -> None:
    edit(own / "model.safetensors", lambda tensors: tensors.__delitem__("vision_model.ln_pre.bias"))
    with pytest.raises(
        CheckpointError,
        match=r"no tensor vision_model\.ln_pre\.bias, which its configuration asks for with shape \(32,\)",
    ):
        Checkpoint.open(own, "device")
    assert Checkpoint.open(own, "server").decoder_tensors()  # the other side does not need it


def test_a_tensor_of_another_shape_is_named(own: Path) -> None:
    edit(own / "model.safetensors", lambda t: t.update({"model.norm.weight": torch.zeros(8)}))
    with pytest.raises(
        CheckpointError, match=r"model\.norm\.weight has shape \(8,\), the configuration asks for \(32,\)"
    ):
        Checkpoint.open(own, "server")
    Checkpoint.open(own, "device")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(own: Path, keep: int) -> None:
    file = own / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*truncated.*again"):
        Checkpoint.open(own)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b'{"a":1}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[4,0]}}',
        b'{"a":{"dtype":"Q4","shape":[1],"data_offsets":[0,4]}}',
        b"{\xff}",
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        tensor_files.read_header(file)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_arrays_are_read_without_a_tensor_library(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"a": tensor, "b": torch.zeros(1)}, tmp_path / "x.safetensors")
    found = tensor_files.read_header(tmp_path / "x.safetensors")["a"].array()
    np.testing.assert_array_equal(found, tensor.float().numpy())


def test_what_is_written_is_read_by_the_library(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.arange(4.0), "c": torch.zeros(0)}
    save_file(tensors, tmp_path / "x.safetensors")
    tensor_files.write(tmp_path / "y.safetensors", tensor_files.read_header(tmp_path / "x.safetensors"))
    found = load_file(tmp_path / "y.safetensors")
    assert found.keys() == tensors.keys()
    assert all(found[k].dtype == t.dtype and torch.equal(found[k], t) for k, t in tensors.items())


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        Checkpoint.open(tmp_path, "device")


def test_a_checkpoint_without_a_codec_says_so(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no readable codec\.json"):
        _ = Checkpoint.open(tiny).codec_id


def test_opening_needs_no_torch(tiny: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tofc.model.checkpoint import Checkpoint; "
        "from tofc.model.projector import Projector; from tofc.model import views, prompt; "
        f"c = Checkpoint.open(Path({str(tiny)!r})); c.model_id; Projector(c); assert 'torch' not in sys.modules"
    )
    done = run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
