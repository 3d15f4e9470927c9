"""Training the codec: the export equals what was trained, and an interrupted run is resumed. Needs `make lab`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.main import get_command

pytest.importorskip("tofc_lab.codec.compressai_parts", exc_type=ImportError)

from tests.e2e.conftest import MODEL
from tests.lab.test_training import _pictures
from tofc.codec.codec import Codec
from tofc.codec.context.context_model import ContextModel, stages
from tofc.codec.context.weights import ContextWeights
from tofc.codec.integer_net import ACTIVATION_BITS, WEIGHT_BITS
from tofc.codec.neighbourhood import neighbour_indices
from tofc.model.checkpoint import Checkpoint
from tofc.model.prompt import load_tokenizer
from tofc_lab import resume
from tofc_lab.cli import app
from tofc_lab.codec import train
from tofc_lab.codec.context import FRACTION
from tofc_lab.codec.export import export
from tofc_lab.codec.model import SCALES, CodecModel
from tofc_lab.codec.places import REACH, Pool, places_of
from tofc_lab.nano.answerer import Answerer, config
from tofc_lab.nano.decoder import DecoderRecipe
from tofc_lab.nano.source import NanoMix, NanoSource

RECIPE = train.CodecRecipe(
    components=6,
    hidden=8,
    warm=2,
    steps=3,
    entropy_steps_per_step=2,
    entropy_steps=20,
    save=1,
    measured=2,
    bits=(8.0, 16.0),
)
MIX = NanoMix(batch=2, turns=2, easy=0.0, large=0.0)


def _model(views: Sequence[NDArray[np.float32]], hidden: int = 16) -> CodecModel:
    """Return an untrained model whose context model predicts large values, different for every component."""
    torch.manual_seed(0)
    model = CodecModel(dim=96, components=8, hidden=hidden, qualities=2)
    model.start_from(torch.from_numpy(np.concatenate(views)), torch.eye(96), (8.0, 16.0))
    with torch.no_grad():
        model.context.out_w.normal_(std=0.4)
        model.context.embed_b.normal_(std=0.3)
        model.context.out_b[:, 1] += 1
    return model.eval()


def _views(seed: int = 0, n: int = 6) -> list[NDArray[np.float32]]:
    return [one.features.astype(np.float32) for one in _pictures(seed, n)]


@pytest.fixture(scope="module")
def exported() -> tuple[CodecModel, ContextWeights]:
    """Export without training pictures: the tables are the model's own distributions."""
    model = _model(_views())
    return model, export(model, {6: np.ones((36, 256), np.float16)}, 256, [])


@torch.no_grad()
@pytest.mark.parametrize("quality", [0, 1])
def test_the_exported_context_model_is_the_trained_one_rounded(
    exported: tuple[CodecModel, ContextWeights], quality: int
) -> None:
    """Compare means and scales of every symbol, in the runtime's order and in training's."""
    model, weights = exported
    rng = np.random.default_rng(quality)
    grid, cells = 6, np.sort(rng.permutation(36)[:30])
    q = rng.integers(-3, 4, (30, 8))
    where, whole = places_of([(grid, cells)]), torch.from_numpy(q).float()
    predicted = model.context.expect(whole, where, quality, model.context.dropped(30))
    wanted = torch.stack(predicted, dim=-1).numpy()  # [30, 8, 2]
    unit = 1 << FRACTION
    found = np.zeros((30, 8, 2))
    for step in ContextModel(weights).coding_steps(grid, cells, quality, q.astype(np.float64)):
        place = step.mean + (step.table % unit) / unit - 0.5
        found[step.rows, step.first : step.last] = np.stack([place, step.table // unit], axis=-1)
    off = found - wanted
    inside = (wanted[..., 1] > 0) & (wanted[..., 1] < SCALES - 1)
    assert np.ptp(wanted[..., 0]) > 2 and np.ptp(wanted[..., 1]) > 3 and inside.mean() > 0.6
    assert np.abs(off[..., 0]).max() < 0.5 / unit + 0.03, "not the nearest fraction of a step"
    assert np.abs(off[inside][:, 1]).max() < 0.5 + 0.03, "not the nearest scale"


@torch.no_grad()
def test_the_bits_of_training_are_those_of_packets(exported: tuple[CodecModel, ContextWeights]) -> None:
    model, weights = exported
    codec = Codec(weights)
    views, grids = _views(1), [(6, np.arange(36))] * 6
    for quality in (0, 1):
        y = model.quantise(torch.from_numpy(np.concatenate(views)), quality)
        q, bits = model.code(y, quality, places_of(grids))
        ideal = [codec.explain(view, 36, quality).feature_bits.sum() for view in views]
        assert bits.sum().item() == pytest.approx(sum(ideal), rel=0.02)
        coded = np.concatenate([codec.symbols(codec.components(view), 6, np.arange(36), quality).q for view in views])
        assert (q.round().numpy() == coded).mean() > 0.98, "another rate-distortion quantisation than the encoder's"
        assert (q - q.round()).abs().max() < 1e-5
        nearest, _ = model.code(y, quality, places_of(grids), price=0.0)
        assert (nearest.round() == y.round()).all() and (q.round() != y.round()).any()


def test_tables_counted_on_training_pictures_save_bytes(exported: tuple[CodecModel, ContextWeights]) -> None:
    model, weights = exported
    views = _views(2, 12)
    counted = export(model, {}, 256, [(view, share) for view in views for share in (1.0, 0.4)])
    assert (counted.y_tables != weights.y_tables).any() and (counted.own_w == weights.own_w).all()
    one, two = (sum(len(Codec(each).encode(view, 36)) for view in views) for each in (counted, weights))
    assert one < two
    decoded = Codec(counted).decode(Codec(counted).encode(views[0]))
    assert np.abs(decoded.features - views[0]).mean() < np.abs(views[0] - weights.mean).mean()


@torch.no_grad()
@pytest.mark.parametrize("name", ["embed_b", "own_b", "mid_b"])
def test_exported_biases_make_the_runtime_round_to_nearest(name: str) -> None:
    model = _model(_views())
    bias = model.context.get_parameter(name)
    bias.uniform_(0, 4)
    activation = model.context.integers()[name] >> WEIGHT_BITS
    assert (
        activation == (bias.double() * 2**ACTIVATION_BITS).round()
    ).double().mean() > 0.99  # halves go up, not to even


@torch.no_grad()
def test_weights_too_large_for_their_integers_are_clipped() -> None:
    model = _model(_views())
    model.context.mid_w[0, 0, :2] = torch.tensor([40.0, -40.0])
    assert model.context.integers()["mid_w"][0, 0, :2].tolist() == [32767, -32767]


VIEWS = [(6, np.arange(36)), (4, np.array([0, 1, 5, 15])), (1, np.array([0])), (6, np.array([3, 9, 10, 30, 35]))]


def test_places_of_many_views_equal_those_of_the_runtime() -> None:
    found, start, total = places_of(VIEWS), 0, sum(len(cells) for _, cells in VIEWS)
    assert found.stage.shape == (total,) and found.around.shape == (total, 24)
    for grid, cells in VIEWS:
        rows = slice(start, start + len(cells))
        near = neighbour_indices(grid, cells, REACH)
        assert (found.stage[rows].numpy() == stages(grid, cells)).all()
        assert (found.around[rows].numpy() == np.where(near < len(cells), near + start, total)).all()
        start += len(cells)


def test_a_pool_draws_whole_views_with_their_places() -> None:
    total = sum(len(cells) for _, cells in VIEWS)
    pool = Pool.of(torch.arange(total)[:, None], VIEWS)  # every feature is its number
    first = np.cumsum([0] + [len(cells) for _, cells in VIEWS])[:-1].tolist()
    assert len(pool) == total
    features, everywhere = pool.all()
    assert features[:, 0].tolist() == list(range(total)) and (everywhere.around == places_of(VIEWS).around).all()
    generator, seen = torch.Generator().manual_seed(0), set()
    for size in (1, 40, 120):
        features, where = pool.draw(generator, size)
        drawn: list[int] = []
        at = 0
        while at < len(features):
            drawn.append(first.index(features[at].item()))
            n = len(VIEWS[drawn[-1]][1])
            assert features[at : at + n, 0].tolist() == list(range(first[drawn[-1]], first[drawn[-1]] + n))
            at += n
        assert at == len(features) >= size > at - n, "no more views than needed"
        wanted = places_of([VIEWS[i] for i in drawn])
        assert (where.stage == wanted.stage).all() and (where.around == wanted.around).all()
        seen |= {*drawn}
    assert seen == set(range(len(VIEWS)))
    again, there = pool.mapped(pool.features * 2.0).draw(torch.Generator().manual_seed(3), 40)
    features, where = pool.draw(torch.Generator().manual_seed(3), 40)
    assert (again == features * 2).all() and (there.around == where.around).all()


@pytest.mark.parametrize(
    ("command", "recipe"),
    [
        (("train-codec",), train.CodecRecipe()),
        (("nano", "codec"), train.CodecRecipe()),
        (("nano", "decoder"), DecoderRecipe()),
    ],
)
def test_the_help_shows_the_defaults_of_the_recipe(command: tuple[str, ...], recipe: Any) -> None:
    found = get_command(app)
    for name in command:
        found = found.commands[name]
    shown = {one.name: one.show_default for one in found.params if isinstance(one.show_default, str)}
    for name in shown.keys() & vars(recipe).keys():
        value = getattr(recipe, name)
        if shown[name].startswith("by the pictures, up to"):
            shown[name] = shown[name].removeprefix("by the pictures, up to ").partition(";")[0]
        assert shown[name] == (",".join(f"{one:g}" for one in value) if isinstance(value, tuple) else f"{value}")
    assert "steps" in shown


def _run(out: Path) -> dict[str, torch.Tensor]:
    out.mkdir(exist_ok=True)
    tokenizer = load_tokenizer(Checkpoint.open(MODEL, side="server"))
    torch.manual_seed(1)
    answerer, world = Answerer(96, config(tokenizer)), _pictures(0)
    source = NanoSource(answerer, tokenizer, world, world, world, mix=MIX, autocast=False)
    trained = train.train(source, out, recipe=RECIPE, log=lambda *_, **__: None)
    return trained.state_dict()


@pytest.mark.parametrize("saves", [3, 6], ids=["of the transform", "in the middle of settling"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    kept: list[dict[str, Any]] = []

    def save_and_stop(path: Path, state: dict[str, Any], settings: resume.Settings) -> None:
        resume.save(path, state, settings)
        kept.append(state)
        if len(kept) == saves:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "resume", SimpleNamespace(load=resume.load, save=save_and_stop))
        _run(tmp_path / "twice")
    assert (kept[-1]["step"], kept[-1]["settled"]) == {3: (3, 0), 6: (5, 16)}[saves]
    resumed, whole = _run(tmp_path / "twice"), _run(tmp_path / "once")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0, msg=name)
    first, last = kept[0]["model"], whole
    assert (last["context.around_w"] != first["context.around_w"]).any()
