"""A first codec from pictures and the tower alone: what it writes, how it resumes, and what it refuses at once."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("tofc_lab.codec.compressai_parts", exc_type=ImportError)

from tests.e2e.conftest import MODEL
from tests.lab.conftest import through
from tofc.codec.codec import Codec
from tofc.codec.fake import fake_weights
from tofc.errors import CheckpointError, UsageError
from tofc.model.checkpoint import Checkpoint
from tofc.model.tensor_files import read_metadata
from tofc.model.tower import Tower
from tofc_lab import resume
from tofc_lab.checkpoint import fake
from tofc_lab.checkpoint.split import split
from tofc_lab.cli import app
from tofc_lab.codec.index.train import IndexRecipe
from tofc_lab.distillation import experiment, pictures, quick
from tofc_lab.distillation.amount import Amount, with_codewords
from tofc_lab.distillation.experiment import Job
from tofc_lab.distillation.quick import QuickCost, train_quick, with_rates
from tofc_lab.nano import decoder, decoder_state, features

RECIPE = IndexRecipe(
    components=6, codewords=(8, 4), weights=(0.05, 0.1), fitting=2, learned=2, hidden=8, prices=(0.5, 0.1),
    rounds=2, moving=1, steps=4, batch=50, save=1,
)  # fmt: skip
SMALL = ("--components", 6, "--codewords", "8,4", "--settle", 3)


def invoke(*arguments: Any) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, re.sub(r"\s+", " ", result.output)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures, one of them in crops, and one file that is not a picture."""
    folder: Path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number, size in enumerate([(336, 300), (200, 336), (500, 260), (250, 250)]):
        coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 nothing more")
    return folder


def test_a_first_codec_comes_from_the_tower_alone_and_is_judged(
    checkpoint: Checkpoint, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_decoder(*_: Any, **__: Any) -> None:
        raise AssertionError("the decoder was loaded")

    run = tmp_path / "run"
    trained = ("--model", checkpoint.path, "--data", data, "--run", run)
    with monkeypatch.context() as patch:
        patch.setattr("tofc_lab.distillation.teacher.load_qwen3", no_decoder)
        code, output = invoke("train-codec", "--quick", *trained, *SMALL)
    assert code == 0, output
    assert "left out" in output and "broken.jpg" in output
    assert re.search(r"\d pictures to train on, \d+ features: up to 8, 4 codewords, 6 components, 3 steps", output)
    out = run / "quick"
    assert {file.name for file in out.iterdir()} == {"codec.json", "codec.safetensors", "report.json"}
    assert read_metadata(out / "codec.safetensors")["model_id"] == checkpoint.model_id
    codec, report = Codec.load(out), json.loads((out / "report.json").read_text())
    assert report["pictures"] == {"training": 3, "held out": 1}
    assert codec.config.presets.keys() == {"low", "medium", "high", "max"}
    assert [n for n, _ in codec.config.rates] == [None] * len(codec.config.rates)
    assert len(report["qualities"]) == codec.config.qualities == 8
    for one in report["qualities"]:
        assert (
            f"quality {one['quality']} {one['bytes']:.1f} B a view relative squared error {one['error']:.3f}" in output
        )
    digest = min(pictures.find(data))  # the one that is held out, by `judge-codec` too
    with np.load(next(run.glob(f"features/*/{digest}.npz"))) as stored:
        sides = stored["grid"][2:]
        views = np.split(stored["features"].astype(np.float32), np.cumsum(sides**2)[:-1])
    sizes = [len(codec.encode(view, len(view), 7)) for view in views]
    assert report["qualities"][7]["bytes"] == pytest.approx(np.mean(sizes), abs=0.06)
    code, output = invoke("judge-codec", *trained, "--codec", out, "--tokens", 2, "--out", tmp_path / "judged.json")
    assert code == 0, output
    judged = json.loads((tmp_path / "judged.json").read_text())
    assert judged["pictures"]["held out"] == 1 and judged["rates"]
    code, output = invoke(
        "judge-codec", *trained, "--codec", out, "--tokens", 2, "--out", tmp_path / "judged.json",
        "--beside", out / "report.json",
    )  # fmt: skip
    assert code == 2 and "of train-codec without --quick or of judge-codec" in output


def test_a_model_with_another_tower_gets_its_codec_too(data: Path, tmp_path: Path) -> None:
    fake.write(tmp_path / "model", tower="efficientnet_lite2")
    code, output = invoke(
        "train-codec", "--quick", "--model", tmp_path / "model", "--data", data, "--run", tmp_path, *SMALL
    )
    assert code == 0, output
    out, checkpoint = tmp_path / "quick", Checkpoint.open(tmp_path / "model")
    codec = Codec.load(out)
    assert codec.config.feature_dim == checkpoint.config.feature_dim == 128
    halves = split(tmp_path / "model", tmp_path / "halves", codecs={"default": out})
    device = Checkpoint.open(halves.device)
    features = Tower(device).encode(np.zeros((1, 3, 224, 224), np.float32))[0]
    decoded = codec.decode(codec.encode(features, len(features), 7))
    assert device.codec_id == halves.codec_id and len(decoded.positions) == 16


def test_a_model_s_own_grid_embedding_is_in_its_first_codec(checkpoint: Checkpoint, data: Path, tmp_path: Path) -> None:
    own = shutil.copytree(checkpoint.path, tmp_path / "own")
    weights = fake_weights(D=128, H=32)
    weights.save(own)
    job = Job(model=own, data=data, run=tmp_path / "run", out=tmp_path / "out", index=RECIPE)
    train_quick(job, 600, through, lambda _: None)
    found = Codec.load(tmp_path / "out").weights.grid_embedding
    assert found.keys() == weights.grid_embedding.keys() and len(found) > 0
    for side, table in found.items():
        np.testing.assert_array_equal(table, weights.grid_embedding[side].astype(np.float16))


def test_an_interrupted_training_gives_the_same_bytes(checkpoint: Checkpoint, data: Path, tmp_path: Path) -> None:
    def job(run: str) -> Job:
        return Job(model=checkpoint.path, data=data, run=tmp_path / run, out=tmp_path / run / "quick", index=RECIPE)

    def stop(text: str) -> None:
        if text.startswith("round 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_quick(job("twice"), 600, through, stop)
    assert (tmp_path / "twice" / "quick.ckpt").exists()
    for run in ("twice", "once"):
        train_quick(job(run), 600, through, lambda _: None)
    for name in ("codec.json", "codec.safetensors"):
        assert (tmp_path / "twice" / "quick" / name).read_bytes() == (tmp_path / "once" / "quick" / name).read_bytes()


def test_settings_that_do_not_fit_the_run_are_an_error_before_the_tower(
    checkpoint: Checkpoint, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = shutil.copytree(data, tmp_path / "data")
    command = ("train-codec", "--quick", "--model", checkpoint.path, "--data", own, "--run", tmp_path / "run")
    assert invoke(*command, *SMALL)[0] == 0
    kept = (tmp_path / "run" / "quick.ckpt").read_bytes()

    def slow(*_: Any, **__: Any) -> None:
        raise AssertionError("the tower or features were started")

    with monkeypatch.context() as patch:
        patch.setattr(quick, "Tower", slow)
        patch.setattr(quick.pictures, "encode_all", slow)
        for others, message in (
            (("--components", 5), "--components was 6, is 5"),
            (("--codewords", "8,5"), r"--codewords was \[8, 4\], is \[8, 5\]"),
            (("--settle", 4), "--settle was 3, is 4"),
            (("--seed", 1), "--seed was 0, is 1"),
            (("--pictures", 2), "pictures was 4, is 2"),
            (("--dtype", "bfloat16"), "--dtype was float32, is bfloat16"),
        ):
            code, output = invoke(*command, *SMALL, *others)
            assert code == 2, output
            assert re.search(f"was trained with other settings or inputs: {message}.* name another --run, or", output)
        Image.new("RGB", (336, 336), "red").save(own / "new.png")
        code, output = invoke(*command, *SMALL)
        assert code == 2 and "the pictures' id was" in output
    assert (tmp_path / "run" / "quick.ckpt").read_bytes() == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--quick", "--entropy-model", "context"),
            "--quick trains the entropy model index, got --entropy-model context",
        ),
        (("--quick", "--steps", 3), "--steps does not apply to the entropy model index"),
        (("--entropy-model", "index", "--lora", 2), "--lora does not apply to the entropy model index"),
        (("--quick", "--tokens", 3), "--tokens does not apply to --quick, which asks no questions"),
        (("--codewords", "8,4"), "--codewords does not apply to the entropy model context"),
        (("--pictures", 9), "--pictures does not apply to a training without --quick"),
        (("--quick", "--codewords", "1"), "--codewords must be 1 to 8 sizes of codebooks, each 2 to 8192"),
        (("--quick", "--codewords", "8;4"), "as in 800,50,50, got 8;4"),
        (("--quick", "--data", "nowhere"), "nowhere is not a folder; name one that has pictures"),
    ],
)
def test_options_that_do_not_apply_are_refused(
    checkpoint: Checkpoint, data: Path, tmp_path: Path, options: tuple[Any, ...], message: str
) -> None:
    run = tmp_path / "run"
    code, output = invoke("train-codec", "--model", checkpoint.path, "--data", data, "--run", run, *options)
    assert code == 2 and message in output
    assert not run.exists()


def test_a_folder_without_enough_readable_pictures_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (336, 336), "red").save(folder / "0.png")
    command = ("train-codec", "--quick", "--model", checkpoint.path, "--data", folder, "--run", tmp_path / "run")
    code, output = invoke(*command)
    assert code == 2 and "has 1 different pictures" in output
    (folder / "1.jpg").write_bytes(b"not a picture")
    code, output = invoke(*command)
    assert code == 2 and "at least 1 of each is needed, so name a folder with more pictures" in output


def test_a_half_of_a_model_is_refused(checkpoint: Checkpoint, data: Path, tmp_path: Path) -> None:
    own = shutil.copytree(checkpoint.path, tmp_path / "own")
    fake_weights(D=128, H=32).save(own)
    split(own, tmp_path / "halves")
    job = Job(model=tmp_path / "halves" / "server", data=data, run=tmp_path / "run", out=tmp_path / "out", index=RECIPE)
    with pytest.raises(CheckpointError, match="is the server half of a model; a whole one is needed"):
        train_quick(job, 600, through, lambda _: None)
    assert not job.run.exists()


def test_codewords_and_steps_follow_the_amount_of_data() -> None:
    every, plain = ("codewords", "steps"), IndexRecipe()
    few = Amount(pictures=40, features=1_440).index_recipe(plain, every, quick=True)
    some = Amount(pictures=400, features=17_000).index_recipe(plain, every, quick=True)
    many = Amount(pictures=30_000, features=1_300_000).index_recipe(plain, every)
    assert (few.codewords, few.steps) == ((72, 4, 4), 100)
    assert (some.codewords, some.steps) == ((850, 53, 53), 640)
    assert (many.codewords, many.steps) == (plain.codewords, plain.steps)
    for amount, recipe in ((1_440, few), (17_000, some)):
        assert amount / recipe.codewords[0] >= 20
    assert Amount(pictures=30_000, features=1_300_000).index_recipe(plain, every, quick=True).steps == 1000
    given = Amount(pictures=40, features=1_440).index_recipe(with_codewords(plain, (500,)), ())
    assert (given.codewords, given.weights, given.steps) == ((500,), (0.1,), plain.steps)
    tiny = Amount(pictures=1, features=36)
    assert tiny.codewords() == (16, 4, 4)
    assert (tiny.decoder_steps(4, 1200), tiny.entropy_steps(1600, 16_000)) == (100, 100)
    assert Amount(pictures=100, features=3_600).decoder_steps(4, 1200) == 800
    assert Amount(pictures=9_000, features=400_000).decoder_steps(4, 1200) == 1200
    assert Amount(pictures=9_000, features=400_000).entropy_steps(1600, 16_000) == 16_000


def test_the_amount_is_that_of_the_features(checkpoint: Checkpoint, data: Path, tmp_path: Path) -> None:
    found = pictures.find(data)
    from tofc.model.tower import Tower
    from tofc_lab.codec.distributed import ProcessGroup

    stored = pictures.encode_all(
        found, checkpoint.config, lambda: Tower(checkpoint), tmp_path, ProcessGroup(), through, lambda _: None
    )
    amount = Amount.of(found.values(), checkpoint.config)
    assert (amount.pictures, amount.features) == (4, sum(side**2 for one in stored for side in one.sides))


def test_rates_are_the_qualities_that_cost_more_bytes_than_those_before() -> None:
    config = Codec.load(MODEL).config
    sizes = [5.0, 8.0, 8.0, 12.0, 11.0, 16.0, 20.0, 20.0]
    costs = [QuickCost(features=None, quality=i, bytes=size, error=1 / size) for i, size in enumerate(sizes)]
    found = with_rates(config, costs)  # type: ignore[arg-type]
    assert [quality for _, quality in found.rates] == [0, 1, 3, 5, 6]
    assert found.presets == {"low": 2, "medium": 2, "high": 3, "max": 4} and found.preset == "high"


def test_a_full_index_codec_is_trained_and_judged(checkpoint: Checkpoint, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = importlib.import_module("tofc_lab.distillation.run")
    job = Job(model=checkpoint.path, data=data, run=tmp_path / "run", out=tmp_path / "out", tokens=2, index=RECIPE)
    logged: list[str] = []
    run.train_codec(job, through, logged.append)
    once = {file.name: file.read_bytes() for file in job.out.iterdir()}
    assert once.keys() == {"codec.json", "codec.safetensors", "report.json", "report.png"}
    report, config = json.loads(once["report.json"]), json.loads(once["codec.json"])
    assert [[row["features"], row["quality"]] for row in report["rates"]] == config["rates"]
    assert config["entropy_model"] == "index" and report["recipe"]["codewords"] == [8, 4]
    run.train_codec(job, through, logged.append)  # everything is there already
    assert {file.name: file.read_bytes() for file in job.out.iterdir()} == once

    def slow(*_: Any, **__: Any) -> None:
        raise AssertionError("features were started")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment.pictures, "encode_all", slow)
        other = Job(**(vars(job) | {"index": with_codewords(RECIPE, (9, 4))}))
        with pytest.raises(UsageError, match=r"other settings: --codewords was \[8, 4\], is \[9, 4\]"):
            run.train_codec(other, through, logged.append)


def _nano_run(folder: Path) -> Path:
    folder.mkdir()
    for name in ("tower.pt", "decoder.pt"):
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.mark.parametrize(
    ("command", "checkpoint_file", "other", "message"),
    [
        ("index", "index.ckpt", ("--steps", 9), "--settle was 7000, is 9"),
        ("index", "index.ckpt", ("--seed", 3), "--seed was 0, is 3"),
        ("codec", "codec.ckpt", ("--steps", 9), "--steps was 1200, is 9"),
        ("codec", "codec.ckpt", ("--start", MODEL / "codecs" / "context"), "--start was None, is "),
        ("decoder", "decoder.ckpt", ("--steps", 9), "--steps was 2400, is 9"),
        ("selective-hyperprior", "selective-hyperprior-1.ckpt", ("--seed", 3), "--seed was 0, is 3"),
    ],
)
def test_nano_s_commands_refuse_other_settings_before_they_load_features(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    checkpoint_file: str,
    other: tuple[Any, ...],
    message: str,
) -> None:
    run = _nano_run(tmp_path / "run")
    checked: list[dict[str, Any]] = []

    def loaded(_: Path) -> None:
        raise UsageError("features were loaded")

    monkeypatch.setattr(features, "load_training", loaded)
    with monkeypatch.context() as patch:
        patch.setattr(resume, "check", lambda path, settings: checked.append(dict(settings)))
        code, output = invoke("nano", command, "--run", run)
        assert code == 2 and "features were loaded" in output
    resume.save(run / checkpoint_file, {}, checked[0])
    code, output = invoke("nano", command, "--run", run)
    assert code == 2 and "features were loaded" in output  # the same settings are accepted
    code, output = invoke("nano", command, "--run", run, *other)
    assert code == 2 and f"was trained with other settings or inputs: {message}" in output


def test_features_of_another_seed_are_not_mixed(tmp_path: Path) -> None:
    features.keep_seed(tmp_path / "new", 3)
    features.keep_seed(tmp_path / "new", 3)
    with pytest.raises(UsageError, match="has features of --seed 3, got --seed 0"):
        features.keep_seed(tmp_path / "new", 0)
    older = tmp_path / "older"  # without a note: of the default seed
    older.mkdir()
    (older / "world-train-0000.npz").write_bytes(b"")
    features.keep_seed(older, 0)
    with pytest.raises(UsageError, match="has features of --seed 0, got --seed 1"):
        features.keep_seed(older, 1)


def test_a_checkpoint_names_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "some.ckpt"
    resume.check(path, {"--steps": 1})  # there is none
    assert resume.load(path, {"--steps": 1}) is None
    recipe = decoder.DecoderRecipe()
    settings = decoder_state.settings_of({"features": "abc"}, recipe, 0)
    resume.save(path, {"weights": torch.zeros(3)}, settings)
    resume.check(path, settings)
    loaded = resume.load(path, settings)
    assert loaded is not None and torch.equal(loaded["weights"], torch.zeros(3))
    with pytest.raises(UsageError, match=r"inputs: features was abc, is def; --seed was 0, is 1\. Give the same"):
        resume.check(path, decoder_state.settings_of({"features": "def"}, recipe, 1))
    torch.save({"basis": "abc"}, path)
    with pytest.raises(UsageError, match="an earlier version wrote it, without its settings"):
        resume.check(path, settings)
