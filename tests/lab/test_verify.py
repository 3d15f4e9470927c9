"""`tofc-lab verify` and `tofc-lab features` on intact checkpoints, and on changed ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from tofc.codec.fake import fake_weights
from tofc.model import resources
from tofc.model.checkpoint import Checkpoint
from tofc.model.projector import Projector
from tofc.model.tower import Tower
from tofc.model.views import ViewRule
from tofc_lab.checkpoint import fake
from tofc_lab.checkpoint.split import split
from tofc_lab.cli import app
from tofc_lab.verify import checks, reference_tower, step3p7
from tofc_lab.verify.whole_model import Reply

VLLM = Path(__file__).parent / "vllm.json"
NAMES = [
    "plans of views",
    "pixels of views",
    "picture tokens",
    "prompt tokens",
    "tower, global view",
    "tower, a crop",
    "tower, ONNX Runtime",
    "logits",
    "greedy answer",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("whole")
    fake.write(out, seed=3)
    fake_weights(D=128, H=32).save(out)
    return out


@pytest.fixture(scope="module")
def halves(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("halves")
    split(whole, out)
    return out


@pytest.fixture(autouse=True)
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision is imported only in tests/parity, which is run in its own process."""
    monkeypatch.setattr(step3p7, "import_torchvision", lambda: False)


def loaded(file: Path) -> dict[str, NDArray[Any]]:
    with np.load(file) as opened:
        return dict(opened)


def run_lab(*arguments: object) -> tuple[int, list[str], str]:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    return done.exit_code, done.stdout.splitlines(), done.stderr


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("lite")
    fake.write(out, seed=3, tower="efficientnet_lite2")
    return out


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, dtype) for kind in ("whole", "halves", "nano") for dtype in ("float32", "bfloat16")),
        ("lite", "float32"),  # 64 random convolutions amplify the rounding of bfloat16
    ],
)
def test_every_check_has_its_line(whole: Path, halves: Path, lite: Path, kind: str, dtype: str) -> None:
    model = {"whole": whole, "halves": halves, "nano": Path("models/nano"), "lite": lite}[kind]
    code, lines, error = run_lab("verify", model, "--dtype", dtype)
    assert [line[:24].rstrip() for line in lines] == NAMES, error
    assert all("skipped: torchvision is not installed" in line for line in lines[:3])
    assert all(" ok " in line for line in lines[3:]), lines
    assert code == 0


def test_the_user_s_own_picture(whole: Path) -> None:
    code, lines, _ = run_lab("verify", whole, "--picture", "tests/e2e/pictures/picture-00.jpg")
    assert code == 0 and [line[:24].rstrip() for line in lines] == [one for one in NAMES if one != "tower, a crop"]


def failed(model: Path) -> list[str]:
    code, lines, _ = run_lab("verify", model)
    assert code == 1
    return [line[:24].rstrip() for line in lines if "FAILED" in line]


def test_another_tower_is_found(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_tower, "THETA", 1_000.0)
    assert failed(whole)[:3] == ["tower, global view", "tower, a crop", "tower, ONNX Runtime"]


def test_another_projector_is_found(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Projector.project
    monkeypatch.setattr(Projector, "project", lambda self, features: project(self, features) * 1.01)
    assert "logits" in failed(whole)


def test_a_template_that_reads_the_content_is_found(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "model")
    file = tmp_path / "model" / "chat_template.jinja"
    template = file.read_text()
    assert "message" in template
    file.write_text("{{ '<|im_end|>' if 'What' in messages | string }}" + template)
    assert "prompt tokens" in failed(tmp_path / "model")


@pytest.mark.parametrize(
    ("answer", "margin", "verdict"),
    [([1, 2, 3], 1.0, " ok "), ([1, 5, 3], 1.0, "FAILED"), ([1, 5, 9], 0.1, " ok ")],
)
def test_tokens_within_rounding_of_each_other_are_not_a_failure(answer: list[int], margin: float, verdict: str) -> None:
    logits: NDArray[np.float32] = np.zeros((1, 10), np.float32)
    theirs = Reply(logits=logits, answer=[1, 2, 3], margins=[9.0, margin, 9.0])
    found = checks.answer(Reply(logits=logits + np.float32(0.1), answer=answer, margins=[]), theirs)
    assert verdict in str(found)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The checkpoint and the picture of vllm.json, which `python -m tofc_lab.verify.vllm_answer` wrote."""
    out: Path = tmp_path_factory.mktemp("served")
    fake.write(out / "model", image_size=fake.RELEASED_SIZE, dtype=torch.bfloat16)
    checks.example(ViewRule()).save(out / "picture.png")
    return out / "model", out / "picture.png"


def test_vllm_agrees(served: tuple[Path, Path]) -> None:
    model, picture = served
    code, lines, error = run_lab("verify", model, "--picture", picture, "--vllm", VLLM)
    names = ["vLLM, prompt tokens", "vLLM, log probabilities", "vLLM, greedy answer"]
    assert [line[:24].rstrip() for line in lines] == NAMES + names, error
    assert code == 0 and all(" ok " in line for line in lines[3:]), lines


def test_another_answer_of_vllm_is_found(served: tuple[Path, Path], tmp_path: Path) -> None:
    model, picture = served
    changed = json.loads(VLLM.read_text())
    changed["prompt"].append(1)
    changed["answer"][-1] += 1
    changed["log probabilities"] = {token: value * 1.01 for token, value in changed["log probabilities"].items()}
    (tmp_path / "other.json").write_text(json.dumps(changed))
    code, lines, _ = run_lab("verify", model, "--picture", picture, "--vllm", tmp_path / "other.json")
    assert code == 1 and [line[:5] for line in lines if "FAILED" in line] == ["vLLM,"] * 3


def test_a_file_that_vllm_answer_did_not_write_is_refused(whole: Path, tmp_path: Path) -> None:
    code, _, error = run_lab("verify", whole, "--vllm", VLLM)
    assert code == 2 and "--vllm is about a picture; name it with --picture" in error
    (tmp_path / "no.json").write_text("[]")
    code, _, error = run_lab("verify", whole, "--picture", "models/nano/example.jpg", "--vllm", tmp_path / "no.json")
    assert code == 2 and "is not what `python -m tofc_lab.verify.vllm_answer` writes" in error


def test_a_figure_that_is_not_a_number_fails() -> None:
    assert checks.Check(name="logits", figure=float("nan"), limit=1.0).failed


def test_a_half_alone_is_refused(halves: Path) -> None:
    code, _, error = run_lab("verify", halves / "server")
    assert code == 2 and "give the whole checkpoint, or the folder that holds device/ and server/" in error
    code, _, error = run_lab("verify", halves / "absent")
    assert code == 2 and "is not a folder" in error
    code, _, error = run_lab("verify", halves, "--dtype", "int3")
    assert code == 2 and "'int3'" in error


def test_too_little_memory_is_an_error_first(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "free_memory_bytes", lambda: 1000)
    code, lines, error = run_lab("verify", whole)
    assert (code, lines) == (2, []) and "float32 needs" in error


def test_a_missing_chat_template_is_an_error_first(whole: Path, tmp_path: Path) -> None:
    own = shutil.copytree(whole, tmp_path / "own")
    (own / "chat_template.jinja").unlink()
    code, lines, error = run_lab("verify", own)
    assert (code, lines) == (2, []) and "has no chat template; copy the model's chat_template.jinja there" in error


def test_features_of_each_view(whole: Path, halves: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    step3p7.noise((450, 300)).save(picture)
    code, lines, error = run_lab("features", whole, picture, "--out", tmp_path / "one.npz")
    assert code == 0, error
    assert lines[0] == ("view0 (crop, row 0, column 0): pixels [3, 224, 224], features [16, 128], projected [16, 32]")
    found = loaded(tmp_path / "one.npz")
    count = len(found["kind"])
    assert len(lines) == count + 1 and found["kind"].tolist() == ["crop"] * (count - 1) + ["global"]
    assert list(zip(found["row"], found["column"], strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0)]
    checkpoint = Checkpoint.open(whole)
    tower, projector = Tower(checkpoint), Projector(checkpoint)
    for index in range(count):
        pixels, features, projected = (found[f"view{index}_{name}"] for name in ("pixels", "features", "projected"))
        assert np.array_equal(tower.encode(pixels[None])[0], features)
        assert np.array_equal(projector.project(features), projected)

    assert run_lab("features", halves, picture, "--out", tmp_path / "two.npz")[0] == 0
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
    assert run_lab("features", halves / "device", picture, "--out", tmp_path / "three.npz")[0] == 0
    device = loaded(tmp_path / "three.npz")
    assert set(device) == {name for name in found if not name.endswith("projected")}
    assert np.array_equal(device["view4_features"], found["view4_features"])


def test_features_of_an_absent_picture_are_an_error(whole: Path, tmp_path: Path) -> None:
    code, _, error = run_lab("features", whole, tmp_path / "absent.png", "--out", tmp_path / "out.npz")
    assert code == 2 and "absent.png does not exist" in error
    assert not (tmp_path / "out.npz").exists()


def test_dtype_is_the_number_type_of_the_tower(whole: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    step3p7.noise((300, 300)).save(picture)
    for name in ("float32", "bfloat16"):
        assert run_lab("features", whole, picture, "--out", tmp_path / name, "--dtype", name)[0] == 0
    full, narrow = (loaded(tmp_path / name)["view0_features"] for name in ("float32", "bfloat16"))
    assert narrow.dtype == np.float32 and torch.equal(
        torch.from_numpy(narrow), torch.from_numpy(narrow).bfloat16().float()
    )
    assert 0 < checks.relative(narrow, full) < 0.1
