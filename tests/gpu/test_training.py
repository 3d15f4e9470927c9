"""Training on a pretended GPU: every part gives the files of the CPU, and deliberate mistakes are found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("tofc_lab.codec.compressai_parts", exc_type=ImportError)
pytest.importorskip("matplotlib")

from benchmarks.pretended_gpu import on_gpu, pretend_gpu
from tests.gpu.conftest import mutate
from tests.lab.conftest import through
from tofc.codec.files import load_weights
from tofc_lab.checkpoint import fake
from tofc_lab.cli import app
from tofc_lab.codec import train
from tofc_lab.codec.distributed import ProcessGroup
from tofc_lab.codec.entropy_model_trainer import EntropyModelTrainer
from tofc_lab.codec.index.train import IndexRecipe
from tofc_lab.codec.train import CodecRecipe
from tofc_lab.distillation import evaluate, run
from tofc_lab.distillation.experiment import Experiment, Job
from tofc_lab.distillation.quick import train_quick
from tofc_lab.distillation.source import DistillationMix
from tofc_lab.distillation.teacher import Teacher

RECIPE = CodecRecipe(
    components=6, hidden=8, warm=2, steps=2, entropy_steps_per_step=1, entropy_steps=3, measured=2, bits=(8.0, 16.0),
    save=1,
)  # fmt: skip
INDEX = IndexRecipe(
    components=6, codewords=(8, 4), weights=(0.05, 0.1), fitting=2, learned=2, hidden=8, prices=(0.5, 0.1),
    rounds=2, moving=1, steps=4, batch=50, save=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with random weights."""
    out: Path = tmp_path_factory.mktemp("model")
    fake.write(out, seed=2)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, one of them in crops."""
    folder: Path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number, size in enumerate([(336, 300), (200, 336), (500, 260)]):
        coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def prepared(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose features and answers are computed."""
    folder: Path = tmp_path_factory.mktemp("prepared")
    job = job_of(model, data, folder, device="cpu")
    Experiment.open(job, ProcessGroup(), progress=through, log=lambda _: None)
    return folder


def job_of(model: Path, data: Path, folder: Path, **settings: Any) -> Job:
    given: dict[str, Any] = {
        "device": "cuda", "tokens": 3, "recipe": RECIPE, "mix": DistillationMix(batch=2, turns=2), **settings
    }  # fmt: skip
    return Job(model=model, data=data, run=folder, out=folder / "codec", **given)


def codec_of(job: Job) -> bytes:
    return (job.out / "codec.safetensors").read_bytes()


def trained(job: Job) -> bytes:
    run.train_codec(job, through, lambda _: None)
    return codec_of(job)


def stop(monkeypatch: pytest.MonkeyPatch, job: Job, after: int) -> None:
    """Start a training, and stop it after this number of rounds of the entropy model."""
    go, rounds = EntropyModelTrainer.run, iter(range(after))

    def stopping(trainer: EntropyModelTrainer, *given: Any) -> list[float]:
        if next(rounds, None) is None:
            raise KeyboardInterrupt
        return go(trainer, *given)

    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(EntropyModelTrainer, "run", stopping)
        trained(job)


@pytest.mark.parametrize(
    "settings",
    [{}, {"dtype": "bfloat16"}, {"lora": 2}, {"index": INDEX}, {"device": "mps"}],
    ids=["context", "bfloat16", "lora", "index", "Apple's"],
)
def test_a_codec_is_that_of_the_cpu(model: Path, data: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    if "lora" in settings:
        pytest.importorskip("peft")
    with pretend_gpu(settings.get("device", "cuda")):
        found = trained(job_of(model, data, tmp_path / "gpu", **settings))
    torch.manual_seed(5)  # whatever random numbers were drawn before: --seed covers the adapters' first values too
    assert found == trained(job_of(model, data, tmp_path / "cpu", **settings | {"device": "cpu"}))
    if "lora" in settings:
        adapted = [tmp_path / name / "codec" / "model" / "model.safetensors" for name in ("gpu", "cpu")]
        assert adapted[0].read_bytes() == adapted[1].read_bytes()


def test_a_stopped_training_is_resumed_and_its_codec_judged(
    model: Path, data: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pretend_gpu():
        whole = job_of(model, data, shutil.copytree(prepared, tmp_path / "whole"))
        parts = job_of(model, data, shutil.copytree(prepared, tmp_path / "parts"))
        trained(whole)
        stop(monkeypatch, parts, after=3)
        assert trained(parts) == codec_of(whole)
        arguments = [
            "judge-codec", "--model", model, "--data", data, "--codec", parts.out, "--run", parts.run,
            "--device", "cuda", "--tokens", 3, "--beside", parts.out / "report.json", "--out", tmp_path / "judged.json",
        ]  # fmt: skip
        result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    rates = [json.loads(file.read_text())["rates"] for file in (tmp_path / "judged.json", parts.out / "report.json")]
    assert rates[0] == rates[1]


def test_gradient_checkpointing_changes_nothing(
    model: Path, data: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pretend_gpu():
        plain = trained(job_of(model, data, shutil.copytree(prepared, tmp_path / "plain")))
        mutate(monkeypatch, Teacher, "open", "config.hidden >= 2048", "config.hidden >= 2")
        assert trained(job_of(model, data, shutil.copytree(prepared, tmp_path / "again"))) == plain


def test_a_quick_codec_is_that_of_the_cpu(model: Path, data: Path, prepared: Path, tmp_path: Path) -> None:
    found = []
    for device in ("cpu", "cuda"):
        with pretend_gpu():
            job = job_of(model, data, tmp_path / device, device=device, index=INDEX)
            train_quick(job, 2, through, lambda _: None)
            found.append(codec_of(job))
    assert found[0] == found[1]


def test_another_codec_s_transform_may_be_continued(model: Path, data: Path, prepared: Path, tmp_path: Path) -> None:
    with pretend_gpu():
        job = job_of(model, data, shutil.copytree(prepared, tmp_path / "run"))
        trained(job)
        weights: Any = load_weights(job.out)
        started = train.new_model(RECIPE, 128).to("cuda")
        started.continue_from(weights, torch.randn(50, 128, device="cuda"), RECIPE.bits)
        assert all(map(on_gpu, started.parameters()))


MISTAKES = {
    "the teacher's batches": (Teacher, "pack", "tensor.to(self.device)", "tensor"),
    "the codec's model": (train, "train", ".to(device).train()", ".train()"),
    "the measure, resumed": (train, "train", 'state["measure"].to(device)', 'state["measure"]'),
    "the first features": (train, "_initialise", "model.start_from(seen.to(device)", "model.start_from(seen"),
    "the sensitivity's generator": (train, "sensitivity", "torch.Generator(probabilities.device)", "torch.Generator()"),
    "the entropy model's components": (EntropyModelTrainer, "freeze", "part.float().to(device)", "part.float()"),
    "the grid table": (evaluate, "grid_table", ".to(teacher.device)", ""),
    "the codec's grid": (run, "_train_context", ".detach().cpu().numpy()", ".detach().numpy()"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(
    model: Path, data: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    with pretend_gpu():
        job = job_of(model, data, shutil.copytree(prepared, tmp_path / "run"))
        if mistake.endswith("resumed"):
            stop(monkeypatch, job, after=1)
        mutate(monkeypatch, *MISTAKES[mistake])
        with pytest.raises((RuntimeError, TypeError), match=r"same device|expected a generator|to numpy"):
            trained(job)
