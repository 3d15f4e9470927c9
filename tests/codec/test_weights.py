from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.codec.kinds import KINDS
from tofc.codec import Codec, CodecWeights
from tofc.codec.fake import fake_features, fake_weights
from tofc.codec.files import load_weights, parse_config, weights_of
from tofc.codec.selective_hyperprior.fake import fake_selective_hyperprior
from tofc.errors import CodecError


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_loaded(tmp_path: Path, kind: str) -> None:
    weights = KINDS[kind](features=12)
    weights.save(tmp_path / "new" / "folder")
    loaded = load_weights(tmp_path / "new" / "folder")
    assert loaded.config == weights.config
    for name, array in weights.arrays().items():
        other = loaded.arrays()[name]
        assert other.dtype == array.dtype and (other == array).all()
    assert set(loaded.grid_embedding) == {4, 6}


@pytest.mark.parametrize(
    ("given", "limits"),
    [(None, (None, None, None)), (4, (4, 4, 4)), ((None, 9, 4), (None, 9, 4)), ((None, None, None), (None,) * 3)],
)
def test_crops_have_one_limit_or_one_for_each_rate(
    tmp_path: Path, given: int | tuple[int | None, ...] | None, limits: tuple[int | None, ...]
) -> None:
    weights = fake_weights(Q=3)
    replace(weights, config=replace(weights.config, crop_features=given)).save(tmp_path)
    config = load_weights(tmp_path).config
    assert (config.crop_features, config.crop_limits) == (given, limits)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_the_fake_codec_is_the_same_every_time(make: Callable[..., CodecWeights]) -> None:
    one, two = make(seed=5).arrays(), make(seed=5).arrays()
    assert all((one[name] == two[name]).all() for name in one)
    assert (make(seed=6).mean != one["mean"]).any()


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
        ("bit_price", np.full(2, 1, np.float32), r"must be float32 \(1,\)"),
        ("embed_w", np.zeros((3, 24), np.int32), "must be int16"),
        ("embed_b", np.zeros((2, 3), np.int32), r"\(1, 3\)"),
        ("around_w", np.zeros((16, 24 * 3), np.int16), r"\(16, 96\)"),
        ("own_w", np.zeros((3, 16, 24), np.int16), r"\(4, 16, 24\)"),
        ("own_w", np.ones((4, 16, 24), np.int16), "depend only on those before it"),
        ("own_b", np.zeros((1, 4, 16), np.int32), r"\(1, 2, 4, 16\)"),
        ("mid_w", np.zeros((4, 16, 15), np.int16), r"\(4, 16, 16\)"),
        ("mid_b", np.zeros((1, 4, 16), np.int64), "must be int32"),
        ("out_w", np.zeros((24, 16), np.int16), r"\(2, 24, 16\)"),
        ("out_b", np.zeros((1, 1, 24), np.int32), r"\(1, 2, 24\)"),
        ("y_tables", np.zeros((32, 32), np.uint32), "y_tables: every table must run"),
        ("y_tables", np.zeros((32, 31), np.uint32), r"\(32, 32\)"),
        ("grid_embedding", {6: np.zeros((36, 31), np.float32)}, "grid_embedding.6"),
        ("grid_embedding", {6: np.zeros((36, 32), np.float64)}, "float32 or float16"),
        ("grid_embedding", {17: np.zeros((289, 32), np.float32)}, "max_grid"),
    ],
)
def test_an_invalid_tensor_is_named(name: str, value: Any, words: str) -> None:
    with pytest.raises(CodecError, match=words):
        replace(fake_weights(), **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("step", np.zeros((1, 64), np.float32), "positive"),
        ("h_a_w1", np.zeros((1, 16, 63), np.float16), r"must be float32 or float16 \(1, 16, 64\)"),
        ("h_a_b2", np.full((1, 3), np.inf, np.float32), "infinity"),
        ("router_w", np.zeros((4, 64), np.float32), r"\(1, 4, 64\)"),
        ("h_s_w1", np.zeros((1, 4, 8, 3), np.int8), "must be int16"),
        ("h_s_b1", np.zeros((1, 4, 3), np.int32), r"\(1, 4, 8\)"),
        ("h_s_w2", np.zeros((1, 4, 2, 64, 8), np.int16), "must be int8"),
        ("h_s_b2", np.zeros((1, 4, 64), np.int32), r"\(1, 4, 2, 64\)"),
        ("expert_tables", np.zeros((1, 5), np.uint32), "expert_tables: every table must run"),
        ("z_tables", np.zeros((1, 3, 15), np.uint32), r"\(1, 3, 16\)"),
        ("synthesis", np.zeros((64, 64), np.float32), "both be there or both be missing"),
    ],
)
def test_an_invalid_tensor_of_the_selective_hyperprior_is_named(name: str, value: Any, words: str) -> None:
    with pytest.raises(CodecError, match=words):
        replace(fake_selective_hyperprior(), **{name: value})


@pytest.mark.parametrize(("index", "component"), [(0, 0), (1, 6), (1, 23), (3, 18)])
def test_a_slice_must_not_depend_on_later_ones(index: int, component: int) -> None:
    own = fake_weights().own_w.copy()
    own[index, 5, component] = 1
    with pytest.raises(CodecError, match="own_w: a slice of components must depend only on those before it"):
        replace(fake_weights(), own_w=own)


def test_the_fake_codecs_predictions_depend_on_their_inputs() -> None:
    """Means and tables of a component differ between features, and change without their neighbours."""
    weights = fake_weights()
    codec = Codec(weights)
    merged = codec.merge(fake_features(weights, 36))
    symbols = codec.symbols(merged.centroids, 6, merged.centres)
    each = symbols.table[np.argsort(symbols.feature, kind="stable")].reshape(36, 24)
    assert (np.ptp(each, axis=0) >= 2).all() and len(np.unique(each)) > 24
    mean = symbols.q.ravel() - symbols.residual[np.argsort(symbols.feature, kind="stable")]
    assert len(np.unique(mean)) > 4
    blind = [replace(weights, **{name: np.zeros_like(getattr(weights, name))}) for name in ("around_w", "own_w")]
    assert len({Codec(one).encode(fake_features(weights, 36)) for one in (weights, *blind)}) == 3


def test_the_fake_codec_is_as_cheap_as_one_without_predictions() -> None:
    weights = fake_weights()
    views = [fake_features(weights, 36, seed) for seed in range(4)]
    nothing = replace(weights, out_w=np.zeros_like(weights.out_w))
    one, two = (sum(len(Codec(each).encode(view)) for view in views) for each in (weights, nothing))
    assert 0.95 < one / two < 1.05


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 3}, "format must be 5"),
        ({"rates": []}, "must be a list of 1 to 64"),
        ({"rates": [[None, 1]]}, "rate .None, 1.; must be .*below qualities = 1"),
        ({"rates": [[0, 0]]}, "null or 1 to 256"),
        ({"rates": [[True, 0]]}, "null or 1 to 256"),
        ({"rates": [3]}, "must be .features, quality."),
        ({"presets": {}}, "names with indices"),
        ({"presets": {"high": 1}}, "index into rates, 0 to 0"),
        ({"presets": {"High!": 0}}, "a lower-case name"),
        ({"preset": "best"}, "must be one of low, high"),
        ({"slices": []}, r"slices = \[\]; must be the ascending ends"),
        ({"slices": 24}, "slices = 24"),
        ({"slices": [6, 12]}, "the last 24"),
        ({"slices": [6, 12, 12, 24]}, "slices"),
        ({"slices": [12, 6, 24]}, "slices"),
        ({"slices": [0, 24]}, "slices"),
        ({"slices": [6.0, 24]}, "slices"),
        ({"slices": [True, 24]}, "slices"),
        ({"channels": 0}, "channels = 0; must be an integer from 1"),
        ({"context_hidden": True}, "context_hidden"),
        ({"reach": 5}, "reach = 5; must be an integer from 1 to 4"),
        ({"crop_features": 0}, "crop_features = 0; must be null or 1 to 256, or a list .* rate, of which there are 1"),
        ({"crop_features": [4, 4]}, r"crop_features = \(4, 4\); must be .* of which there are 1"),
        ({"crop_features": []}, r"crop_features = \(\); must be"),
        ({"crop_features": [257]}, r"crop_features = \(257,\); must be null or 1 to 256"),
        ({"crop_features": [True]}, "crop_features"),
        ({"crop_features": [[4]]}, "crop_features"),
        ({"crop_features": {"low": 4}}, "crop_features = {'low': 4}; must be"),
        ({"crop_features": "4"}, "crop_features = '4'; must be"),
        ({"components": 1.0}, "components"),
        ({"fraction": 9}, "fraction = 9"),
        ({"fraction": 6}, "a multiple of 64"),
        ({"tables": 33}, "a multiple of 2"),
        ({"max_grid": 65}, "max_grid"),
        ({"max_grid": "9"}, "max_grid = "),
        ({"colour": 1}, "unknown keys"),
    ],
)
def test_an_invalid_configuration_is_refused(change: dict[str, Any], words: str) -> None:
    values = json.loads(fake_weights().config.text()) | change
    with pytest.raises(CodecError, match=words):
        parse_config(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"experts": 1}, "experts = 1; must be an integer from 2"),
        ({"hyper": 0}, "hyper = 0; must be an integer from 1"),
        ({"hyper_range": 4096}, "hyper_range = 4096"),
        ({"synthesis_hidden": 2.0}, "synthesis_hidden"),
        ({"components": 8193}, "components = 8193"),
        ({"tables": 33}, "a multiple of 2"),
        ({"slices": [64]}, "unknown keys .'slices'.; with the entropy model selective-hyperprior"),
        ({"entropy_model": "hyperprior"}, "must be one of context, .*selective-hyperprior"),
    ],
)
def test_an_invalid_configuration_of_the_selective_hyperprior_is_refused(change: dict[str, Any], words: str) -> None:
    values = json.loads(fake_selective_hyperprior().config.text()) | change
    with pytest.raises(CodecError, match=words):
        parse_config(json.dumps(values))


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '{"format": 1}', b"\xff\xfe\xfd"])
def test_text_that_is_not_a_configuration_is_refused(text: str | bytes) -> None:
    with pytest.raises(CodecError, match=r"codec\.json"):
        parse_config(text)


def test_missing_and_extra_tensors_are_named(tmp_path: Path) -> None:
    fake_weights().save(tmp_path)
    path = tmp_path / "codec.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if name != "step"} | {"more": np.zeros(1)}, path)
    with pytest.raises(CodecError, match=r"missing \['step'\], not expected \['more'\]"):
        Codec.load(tmp_path)


@pytest.mark.parametrize("suffix", ["x", "06", "", "²"])
def test_invalid_grid_sides_are_refused(tmp_path: Path, suffix: str) -> None:
    fake_weights().save(tmp_path)
    tensors = load_file(tmp_path / "codec.safetensors")
    with pytest.raises(CodecError, match="grid side"):
        weights_of(fake_weights().config, tensors | {f"grid_embedding.{suffix}": np.zeros((36, 32), np.float32)})


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Codec.load(tmp_path)
    fake_weights().save(tmp_path)
    (tmp_path / "codec.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(CodecError, match="cannot be read"):
        Codec.load(tmp_path)
    (tmp_path / "codec.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        Codec.load(tmp_path)
