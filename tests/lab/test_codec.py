"""Training the codec: what is exported is what was trained, and what an interrupted run keeps. Needs `make lab`."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lab.codec.compressai_parts", exc_type=ImportError)

from lab import resume
from lab.codec import train
from lab.codec.export import export
from lab.codec.model import FRACTION, CodecModel
from lab.nano.answerer import Answerer, config
from lab.nano.source import Mix, NanoSource
from shared.codec.codec import Codec
from shared.codec.hyperprior import h_s
from shared.model.checkpoint import Checkpoint
from shared.model.prompt import load_tokenizer
from tests.e2e.conftest import MODEL
from tests.lab.test_training import _pictures

RECIPE = train.Recipe(
    components=6,
    hyper=2,
    hidden=8,
    warm=2,
    steps=3,
    follow=2,
    settle=3,
    save=3,
    measured=2,
    bits=(8.0, 16.0),
)
MIX = Mix(batch=2, turns=2, easy=0.0, large=0.0)


@torch.no_grad()
def test_the_exported_hyperprior_is_the_trained_one_rounded() -> None:
    torch.manual_seed(0)
    pictures = [one.features.astype(np.float32) for one in _pictures(0, 40)]
    model = CodecModel(dim=96, components=8, hyper=3, hidden=16, qualities=2)
    model.start_from(torch.from_numpy(np.concatenate(pictures)), torch.eye(96), (8.0, 16.0))
    model.h_s.w2.normal_(std=0.1)
    tokenizer = load_tokenizer(Checkpoint.open(MODEL, side="server"))
    weights = export(model, Answerer(96, config(tokenizer)).grid_embedding(), 256, pictures)
    z = np.random.default_rng(0).integers(-7, 8, (500, 3))
    mean, table = h_s(weights, z, 0, 1)
    wanted, scale = (t.numpy() for t in model.h_s(torch.from_numpy(z).float(), 1))
    place = mean + (table % (1 << FRACTION)) / (1 << FRACTION) - 0.5
    assert np.abs(wanted).max() > 2
    assert np.abs(place - wanted).max() < 0.2 and np.abs((table >> FRACTION) - scale).max() < 1.2
    decoded = Codec(weights).decode(Codec(weights).encode(pictures[0]))
    assert np.abs(decoded.features - pictures[0]).mean() < np.abs(pictures[0] - weights.mean).mean()


def _run(out: Path) -> dict[str, torch.Tensor]:
    out.mkdir(exist_ok=True)
    tokenizer = load_tokenizer(Checkpoint.open(MODEL, side="server"))
    torch.manual_seed(1)
    answerer, world = Answerer(96, config(tokenizer)), _pictures(0)
    source = NanoSource(answerer, tokenizer, world, world, world, mix=MIX, autocast=False)
    trained = train.train(source, out, recipe=RECIPE, log=lambda *_, **__: None)
    return trained.state_dict()


def test_a_run_that_was_interrupted_ends_where_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_and_stop(*state: Any) -> None:
        resume.save(*state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "resume", SimpleNamespace(load=resume.load, save=save_and_stop))
        _run(tmp_path / "twice")
    resumed, whole = _run(tmp_path / "twice"), _run(tmp_path / "once")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0, msg=name)
