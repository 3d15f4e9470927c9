"""Training the decoder: an interrupted run is resumed; and the way back from a shipped checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.e2e.conftest import MODEL
from tofc.codec.codec import Codec
from tofc.errors import UsageError
from tofc.model.checkpoint import Checkpoint
from tofc.model.prompt import load_tokenizer
from tofc_lab.nano import answerer as answering
from tofc_lab.nano import decoder, export
from tofc_lab.nano.features import CachedPicture
from tofc_lab.nano.tower import VISION
from tofc_lab.nano.unpack import unpack
from tofc_lab.world.objects import NAMES
from tofc_lab.world.scene import Scene, Sign, Thing

RECIPE = decoder.DecoderRecipe(steps=4, early=2, batch=2, turns=3, save=2, large=0.0, easy=0.0)


def _pictures(seed: int, n: int = 3) -> list[CachedPicture]:
    rng, found = np.random.default_rng(seed), []
    for _ in range(n):
        names, places = rng.choice(NAMES, 3), rng.uniform(40, 290, (3, 2))
        things = [
            Thing(name=str(name), x=x, y=y, width=60, height=60) for name, (x, y) in zip(names, places, strict=True)
        ]
        sign = Sign(number=int(rng.integers(10, 100)), x=100, y=250, width=80, height=50, font="any")
        scene = Scene(width=336, height=336, things=tuple(things), sign=sign)
        features = rng.standard_normal((36, 96)).astype(np.float16)
        found.append(CachedPicture(features=features, sides=(6,), rows=0, columns=0, scene=scene))
    return found


def _run(out: Path, tokenizer: PreTrainedTokenizerFast, logs: int = 1000) -> dict[str, torch.Tensor]:
    def log(*_: object, **__: object) -> None:
        nonlocal logs
        logs -= 1
        if logs < 0:
            raise KeyboardInterrupt

    out.mkdir(exist_ok=True)
    trained = decoder.train(
        _pictures(0), [], [], _pictures(1), tokenizer, out, recipe=RECIPE, autocast=False, workers=0, log=log
    )
    return trained.state_dict()


def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(Checkpoint.open(MODEL, side="server"))
    with pytest.raises(KeyboardInterrupt):  # after the first checkpoint, before the second
        _run(tmp_path / "twice", tokenizer, logs=2)
    resumed, whole = _run(tmp_path / "twice", tokenizer), _run(tmp_path / "once", tokenizer)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)
    assert (tmp_path / "twice" / "decoder.jsonl").read_text() == (tmp_path / "once" / "decoder.jsonl").read_text()


def test_a_shipped_model_is_unpacked_and_exported_unchanged(tmp_path: Path) -> None:
    unpack(MODEL, tmp_path)
    checkpoint = Checkpoint.open(MODEL)
    answerer, _ = answering.load(tmp_path, checkpoint.config.feature_dim)
    tower = torch.load(tmp_path / "tower.pt", weights_only=True)
    codec = Codec.load(MODEL).weights
    export.export(tmp_path / "again", VISION, tower, answerer, tmp_path / "tokenizer", codec)
    assert Checkpoint.open(tmp_path / "again").model_id == checkpoint.model_id
    with pytest.raises(UsageError, match="choose another"):
        unpack(MODEL, tmp_path)
