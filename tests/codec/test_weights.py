from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shared.codec import Codec, CodecConfig, CodecError, CodecWeights
from shared.codec.fake import fake_weights


@pytest.mark.parametrize("experts", [1, 3])
def test_what_is_saved_is_loaded(tmp_path: Path, experts: int) -> None:
    weights = fake_weights(E=experts, features=12)
    weights.save(tmp_path / "new" / "folder")
    loaded = CodecWeights.load(tmp_path / "new" / "folder")
    assert loaded.config == weights.config
    for name, array in weights._arrays().items():
        other = loaded._arrays()[name]
        assert other.dtype == array.dtype and (other == array).all()
    assert set(loaded.grid_embedding) == {4, 6}


def test_the_fake_codec_is_the_same_every_time() -> None:
    one, two = fake_weights(seed=5)._arrays(), fake_weights(seed=5)._arrays()
    assert all((one[name] == two[name]).all() for name in one)
    assert (fake_weights(seed=6).analysis != one["analysis"]).any()


def test_arrays_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        fake_weights().y_tables[0, 0] = 1


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("mean", np.zeros(65, np.float32), r"must be float32 \(64,\)"),
        ("mean", np.zeros(64, np.float64), "must be float32"),
        ("mean", np.full(64, np.nan, np.float32), "NaN"),
        ("step", np.zeros((1, 24), np.float32), "positive"),
        ("bit_price", np.full(1, -1, np.float32), "negative"),
        ("hs_w1", np.zeros((1, 16, 2), np.int16), "must be int8"),
        ("hs_b2", np.zeros((1, 1, 24), np.int32), r"\(1, 1, 48\)"),
        ("z_tables", np.zeros((1, 2, 10), np.uint32), "z_tables: every table must run"),
        ("y_tables", np.zeros((32, 32), np.uint32), "y_tables"),
        ("expert_table", np.array([0, 65536], np.uint32), "more than one"),
        ("grid_embedding", {6: np.zeros((36, 31), np.float32)}, "grid_embedding.6"),
        ("grid_embedding", {6: np.zeros((36, 32), np.float64)}, "float32 or float16"),
        ("grid_embedding", {17: np.zeros((289, 32), np.float32)}, "max_grid"),
    ],
)
def test_what_does_not_fit_is_named(name: str, value: Any, words: str) -> None:
    with pytest.raises(CodecError, match=words):
        replace(fake_weights(), **{name: value})


def test_experts_need_their_table() -> None:
    with pytest.raises(CodecError, match="expert_table"):
        replace(fake_weights(E=2), expert_table=None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "format must be 3"),
        ({"rates": []}, "must be a list of 1 to 64"),
        ({"rates": [[None, 1]]}, "rate .None, 1.; must be .*below qualities = 1"),
        ({"rates": [[0, 0]]}, "null or 1 to 256"),
        ({"rates": [[True, 0]]}, "null or 1 to 256"),
        ({"rates": [3]}, "must be .features, quality."),
        ({"presets": {}}, "names with indices"),
        ({"presets": {"high": 1}}, "an index below 1"),
        ({"presets": {"High!": 0}}, "a lower-case word"),
        ({"preset": "best"}, "must be one of low, high"),
        ({"experts": 0}, "experts = 0; must be an integer from 1"),
        ({"experts": True}, "experts"),
        ({"components": 1.0}, "components"),
        ({"shift1": 99}, "shift1"),
        ({"fraction": 8}, "at most shift2"),
        ({"tables": 33}, "a multiple of 2"),
        ({"max_grid": 65}, "max_grid"),
        ({"max_grid": "9"}, "max_grid = "),
        ({"colour": 1}, "unknown keys"),
    ],
)
def test_a_config_that_cannot_be(change: dict[str, Any], words: str) -> None:
    values = json.loads(fake_weights().config.text()) | change
    with pytest.raises(CodecError, match=words):
        CodecConfig.parse(json.dumps(values))


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '{"format": 1}', b"\xff\xfe\xfd"])
def test_a_config_that_is_none(text: str | bytes) -> None:
    with pytest.raises(CodecError, match=r"codec\.json"):
        CodecConfig.parse(text)


def test_missing_and_extra_tensors_are_named(tmp_path: Path) -> None:
    fake_weights().save(tmp_path)
    path = tmp_path / "codec.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if name != "step"} | {"more": np.zeros(1)}, path)
    with pytest.raises(CodecError, match=r"missing \['step'\], not expected \['more'\]"):
        Codec.load(tmp_path)


@pytest.mark.parametrize("suffix", ["x", "06", "", "²"])
def test_grid_names_that_are_none(tmp_path: Path, suffix: str) -> None:
    fake_weights().save(tmp_path)
    tensors = load_file(tmp_path / "codec.safetensors")
    with pytest.raises(CodecError, match="grid side"):
        CodecWeights.of(fake_weights().config, tensors | {f"grid_embedding.{suffix}": np.zeros((36, 32), np.float32)})


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Codec.load(tmp_path)
    fake_weights().save(tmp_path)
    (tmp_path / "codec.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(CodecError, match="cannot be read"):
        Codec.load(tmp_path)
    (tmp_path / "codec.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        Codec.load(tmp_path)
