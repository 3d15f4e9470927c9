"""Training TOFC's selective hyperprior: the export equals what was trained, and an interrupted run is resumed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("tofc_lab.codec.compressai_parts", exc_type=ImportError)

from tests.e2e.conftest import MODEL
from tests.lab.test_training import _pictures
from tofc.codec.codec import Codec
from tofc.codec.context.weights import ContextWeights
from tofc.codec.fake import fake_weights
from tofc.codec.selective_hyperprior.hyper_synthesis import HyperSynthesis
from tofc.errors import UsageError
from tofc.model.checkpoint import Checkpoint
from tofc.model.prompt import load_tokenizer
from tofc_lab import resume
from tofc_lab.codec import train_selective_hyperprior as training
from tofc_lab.codec.selective_hyperprior import SCALES, SelectiveHyperprior
from tofc_lab.codec.selective_hyperprior_export import FRACTION, export
from tofc_lab.nano.answerer import Answerer, config
from tofc_lab.nano.source import NanoMix, NanoSource

RECIPE = training.SelectiveHyperpriorRecipe(
    prices=(1e-2, 1e-3), lengths=(3.0, 1.0), experts=3, hidden=5, analysis_hidden=7,
    warm=3, warm_next=2, steps=2, batch=16, measured=2, save=1,
)  # fmt: skip


def _model(components: int = 96, seed: int = 0) -> SelectiveHyperprior:
    """Return an untrained model whose experts predict different, large values."""
    torch.manual_seed(seed)
    model = training.new_model(RECIPE, 96, components)
    x = torch.from_numpy(np.concatenate([one.features for one in _pictures(0, 6)]).astype(np.float32))
    if components < 96:
        basis = torch.linalg.qr(torch.randn(96, components, generator=torch.Generator().manual_seed(9))).Q
        model.analysis.copy_(basis.T)
        model.synthesis.copy_(basis)
    model.start_from(model.project(x), torch.full((components,), 0.8))
    with torch.no_grad():
        model.h_a[2].weight.mul_(20)
        model.h_s_w2.normal_(std=0.2)
        model.router.weight.mul_(20)
    return model.eval()


@torch.no_grad()
def test_the_exported_experts_are_the_trained_ones_rounded() -> None:
    model = _model()
    rng = np.random.default_rng(0)
    experts, z = rng.integers(0, 3, 50), rng.integers(-15, 16, (50, 6))
    means, scales = model.expect(torch.from_numpy(z).float())
    wanted = np.stack([means[range(50), experts], scales[range(50), experts]], axis=-1)
    mean, table = HyperSynthesis(export([model], {}, 256, []))(experts, z, 0)
    unit = 1 << FRACTION
    off = np.stack([mean + (table % unit) / unit - 0.5, table // unit], axis=-1) - wanted
    inside = (wanted[..., 1] > 0) & (wanted[..., 1] < SCALES - 1)
    assert np.ptp(wanted[..., 0]) > 2 and np.ptp(wanted[..., 1]) > 3 and inside.mean() > 0.5
    assert np.abs(off[..., 0]).max() < 0.5 / unit + 0.05, "not the nearest fraction of a step"
    assert np.abs(off[inside][:, 1]).max() < 0.5 + 0.05, "not the nearest scale"


@torch.no_grad()
@pytest.mark.parametrize("components", [96, 8])
def test_the_bits_of_training_are_those_of_packets(components: int) -> None:
    models = [_model(components, seed) for seed in (0, 1)]
    codec = Codec(export(models, {6: np.ones((36, 256), np.float16)}, 256, []))
    assert (codec.weights.analysis is None) == (components == 96)
    views = [one.features.astype(np.float32) for one in _pictures(1, 6)]
    for quality, model in enumerate(models):
        y = model.project(torch.from_numpy(np.concatenate(views))) / model.log_step.exp()
        explained = [codec.explain(view, 36, quality) for view in views]
        assert len(np.unique(np.concatenate([one.experts for one in explained]))) > 1
        ideal = sum(one.feature_bits.sum() for one in explained)
        assert model.rate(y).sum().item() == pytest.approx(ideal, rel=0.03)
        wanted = model.dequantise(y.round()).numpy()
        decoded = np.concatenate([codec.decode(one.packet).features for one in explained])
        assert np.mean(np.abs(decoded - wanted) < 1e-3) > 0.98


@torch.no_grad()
def test_a_model_that_starts_from_another_predicts_the_same() -> None:
    one, other = _model(), training.new_model(RECIPE, 96, 96).eval()
    one.h_s_w2.clamp_(-0.45, 0.45)  # the doubled ones are still within what is stored
    other.continue_from(one, 0.5)
    x = torch.from_numpy(_pictures(2, 1)[0].features.astype(np.float32))
    y, finer = (model.project(x) / model.log_step.exp() for model in (one, other))
    torch.testing.assert_close(finer, 2 * y)
    torch.testing.assert_close(other.h_a(finer), one.h_a(y))
    torch.testing.assert_close(other.router(finer), one.router(y))
    z = torch.randint(-3, 4, (36, 6)).float()
    # twice as many steps; the last layer's weights are rounded
    torch.testing.assert_close(other.expect(z)[0], 2 * one.expect(z)[0], rtol=0, atol=0.3)


def test_tables_counted_on_training_pictures_save_bytes() -> None:
    models = [_model(seed=3)]
    views = [one.features.astype(np.float32) for one in _pictures(2, 12)]
    plain, counted = export(models, {}, 256, []), export(models, {}, 256, [(view, 1.0) for view in views])
    assert (plain.h_s_w2 == counted.h_s_w2).all()
    for name in ("expert_tables", "z_tables", "y_tables"):
        assert (getattr(plain, name) != getattr(counted, name)).any()
    one, two = (sum(len(Codec(each).encode(view)) for view in views) for each in (counted, plain))
    assert one < two


def _train(out: Path, transform: ContextWeights | None = None) -> list[SelectiveHyperprior]:
    out.mkdir(exist_ok=True)
    tokenizer = load_tokenizer(Checkpoint.open(MODEL, side="server"))
    torch.manual_seed(1)
    answerer, world = Answerer(96, config(tokenizer)), _pictures(0)
    mix = NanoMix(batch=2, turns=2, easy=0.0, large=0.0)
    source = NanoSource(answerer, tokenizer, world, world, world, mix=mix, autocast=False)
    return training.train(source, out, transform=transform, recipe=RECIPE, log=lambda *_: None)


@pytest.mark.parametrize("saves", [4, 8], ids=["of the first model", "of the second model"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    kept: list[Path] = []

    def save_and_stop(path: Path, state: dict[str, Any], settings: resume.Settings) -> None:
        resume.save(path, state, settings)
        kept.append(path)
        if len(kept) == saves:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "resume", SimpleNamespace(load=resume.load, save=save_and_stop))
        _train(tmp_path / "twice")
    assert kept[-1].name == f"selective-hyperprior-{saves // 8}.ckpt"
    resumed, whole = _train(tmp_path / "twice"), _train(tmp_path / "once")
    for quality in (0, 1):
        for name, value in whole[quality].state_dict().items():
            torch.testing.assert_close(resumed[quality].state_dict()[name], value, rtol=0, atol=0, msg=name)
    coarse, fine = (model.log_step.exp() for model in whole)
    assert (fine < coarse).all()


def test_a_run_with_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _train(tmp_path)
    monkeypatch.setitem(globals(), "RECIPE", training.SelectiveHyperpriorRecipe(warm=1))
    with pytest.raises(UsageError, match=r"with other settings or inputs: .*; warm was 3, is 1"):
        _train(tmp_path)


def test_the_transform_of_another_codec_stays_as_it_is(tmp_path: Path) -> None:
    transform = fake_weights(D=96, M=16)
    models = _train(tmp_path, transform)
    weights = export(models, {}, 256, [])
    assert (weights.analysis == transform.analysis).all() and (weights.synthesis == transform.synthesis).all()
    assert weights.h_s_w2.shape == (2, 3, 2, 16, 5)
