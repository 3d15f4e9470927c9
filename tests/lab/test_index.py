"""Training the index codec: the runtime chooses and counts as training did, and an interrupted run is resumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.lab.test_training import _pictures
from tofc.codec.codec import Codec
from tofc_lab.codec.index import transform
from tofc_lab.codec.index.export import export
from tofc_lab.codec.index.grids import Grids
from tofc_lab.codec.index.model import IndexModel
from tofc_lab.codec.index.train import IndexRecipe, train
from tofc_lab.codec.index.transform import Transform
from tofc_lab.codec.places import Pool
from tofc_lab.nano.source import pool

RECIPE = IndexRecipe(
    codewords=(40, 8), weights=(0.05, 0.1), fitting=2, learned=4, hidden=16, prices=(0.5, 0.1), rounds=2, moving=1,
    steps=6, batch=150, save=2,
)  # fmt: skip


def _data() -> tuple[Pool, Transform]:
    pictures = _pictures(0, 6)
    x = torch.from_numpy(np.concatenate([one.features for one in pictures]).astype(np.float32))
    fitted = transform.fit(x, torch.eye(x.shape[1]), 12)
    mean, analysis = fitted.mean.numpy(), fitted.analysis.numpy()
    return pool(pictures, lambda view: (view - mean) @ analysis.T, 0), fitted


def _trained(out: Path) -> tuple[IndexModel, torch.Tensor]:
    data, fitted = _data()
    return train(Grids.of(data, fitted.project), out / "index.ckpt", recipe=RECIPE, log=lambda _: None)


def test_the_runtime_chooses_and_counts_as_training_did(tmp_path: Path) -> None:
    model, price = _trained(tmp_path)
    data, fitted = _data()
    codec = Codec(
        export(model, fitted, price, {}, 8, rates=((None, 0), (None, 1)), presets={"low": 0, "high": 1}, preset="high")
    )
    same = total = 0
    for views in Grids.of(data, fitted.project):
        quality = torch.ones(len(views.y), dtype=torch.long)
        index = model.choose(views, quality, price)
        with torch.no_grad():
            bits = model.loss(views.side, index, views.present, quality).sum()
        counted = 0.0
        for y, present, wanted in zip(views.y, views.present, index, strict=True):
            symbols = codec.symbols(y[present].numpy(), views.side, np.flatnonzero(present.numpy()), 1)
            same += int((symbols.q == wanted[present].numpy()).sum())
            total += symbols.q.size
            counted += float(codec.entropy_model.bits(symbols).sum())
        assert counted == pytest.approx(float(bits), rel=0.05)
    assert same > 0.97 * total


def test_an_interrupted_training_is_resumed(tmp_path: Path) -> None:
    uninterrupted, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    uninterrupted.mkdir()
    interrupted.mkdir()
    whole, _ = _trained(uninterrupted)
    stopped = 0

    def stop(text: str) -> None:
        nonlocal stopped
        stopped += text.startswith("round 2")
        if stopped:
            raise KeyboardInterrupt

    data, fitted = _data()
    with pytest.raises(KeyboardInterrupt):
        train(Grids.of(data, fitted.project), interrupted / "index.ckpt", recipe=RECIPE, log=stop)
    resumed, _ = _trained(interrupted)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
