from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tofc.errors import CheckpointError
from tofc.model.generation import GREEDY, GenerationConfig


def read(folder: Path, content: dict[str, Any]) -> GenerationConfig:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return GenerationConfig.read(folder)


def test_a_checkpoint_without_the_file_is_greedy(tmp_path: Path) -> None:
    assert (
        GenerationConfig.read(tmp_path)
        == GREEDY
        == GenerationConfig(temperature=0.0, top_p=1.0, top_k=0, max_tokens=None)
    )


def test_qwen3s_own(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        {
            "bos_token_id": 151643,
            "do_sample": True,
            "eos_token_id": [151645, 151643],
            "pad_token_id": 151643,
            "temperature": 0.6,
            "top_k": 20,
            "top_p": 0.95,
            "transformers_version": "4.51.0",
        },
    )
    assert found == GenerationConfig(temperature=0.6, top_p=0.95, top_k=20)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ({}, GREEDY),
        ({"do_sample": False, "eos_token_id": 2}, GREEDY),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, GenerationConfig(top_p=0.9)),
        ({"do_sample": True}, GenerationConfig(temperature=1.0)),
        ({"do_sample": None, "temperature": None}, GREEDY),
        ({"temperature": 1}, GenerationConfig(temperature=1.0)),
        ({"top_p": 0.9, "top_k": -1}, GenerationConfig(top_p=0.9)),
        ({"max_new_tokens": 65536}, GenerationConfig(max_tokens=65536)),
    ],
)
def test_what_the_file_says(tmp_path: Path, content: dict[str, Any], wanted: GenerationConfig) -> None:
    assert read(tmp_path, content) == wanted


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("temperature", -1, "0 (greedy) to 100"),
        ("temperature", float("nan"), "0 (greedy) to 100"),
        ("temperature", "hot", "0 (greedy) to 100"),
        ("temperature", True, "0 (greedy) to 100"),
        ("top_p", 0, "0.000001 to 1"),
        ("top_p", 1.5, "0.000001 to 1"),
        ("top_k", -2, "a whole number of at least -1"),
        ("top_k", 0.5, "a whole number of at least -1"),
        ("max_new_tokens", 0, "a whole number of at least 1"),
        ("max_new_tokens", False, "a whole number of at least 1"),
        ("do_sample", "yes", "true or false"),
    ],
)
def test_a_bad_value_is_named(tmp_path: Path, key: str, value: Any, allowed: str) -> None:
    with pytest.raises(CheckpointError) as bad:
        read(tmp_path, {"do_sample": False, key: value})
    for part in (str(tmp_path / "generation_config.json"), f"{key} must be {allowed}", f"got {value!r}"):
        assert part in str(bad.value)
