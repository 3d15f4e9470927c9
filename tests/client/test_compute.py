"""Where the tower computes and in which type: what may be asked for, and that it is part of a picture's identity."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from device_client import cli
from device_client.compute import Compute
from device_client.encoder import EncoderThread, TowerEncoder
from tofc.errors import EncoderError
from tofc.model.checkpoint import Checkpoint
from tofc.model.shipped import NANO
from tofc_lab.checkpoint import fake


def command(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in arguments])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--dtype", "int4"], "--dtype must be one of float32, bfloat16, int8, got int4"),
        (["--dtype", "int8", "--device", "cuda"], "--dtype int8 is for the CPU; with --device cuda use bfloat16"),
        (
            ["--device", "cuda:99"],
            "--device must be one that torch finds here (cpu), got 'cuda:99': this torch is a CPU build",
        ),
        (["--device", "toaster"], "--device must be one that torch finds here (cpu), got 'toaster'"),
    ],
)
def test_a_choice_that_is_not_allowed_is_one_line(
    small: Path, tmp_path: Path, options: list[str], expected: str
) -> None:
    for arguments in (["ask", small, "why?"], ["inspect", small, "--out", tmp_path / "map.png"]):
        result = command(*arguments, *options)
        assert result.exit_code == 2 and result.stderr.startswith(f"device-client: {expected}")
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("options", [["--dtype", "float32"], ["--device", "cpu"]])
def test_both_belong_to_mode_features(small: Path, options: list[str]) -> None:
    result = command("ask", small, "why?", "--mode", "image", *options)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"device-client: {' '.join(options)} belongs to --mode features")


def test_a_checkpoint_in_half_precision_is_computed_in_it(tmp_path: Path) -> None:
    fake.write(tmp_path / "half", dtype=torch.bfloat16)
    fake.write(tmp_path / "float16", dtype=torch.float16)
    for path, dtype in ((tmp_path / "half", "bfloat16"), (tmp_path / "float16", "float32"), (NANO, "float32")):
        assert Compute().dtype_of(Checkpoint.open(path, "device")) == dtype
    assert Compute(dtype="float32").dtype_of(Checkpoint.open(tmp_path / "half")) == "float32"


@pytest.mark.parametrize(
    ("cause", "kind", "message"),
    [
        (
            "DefaultCPUAllocator: can't allocate memory",
            EncoderError,
            "^this device has not enough memory for",
        ),
        ("size mismatch for conv1.weight", RuntimeError, "^size mismatch for conv1.weight$"),  # a defect
    ],
)
def test_only_a_lack_of_memory_is_reported_in_other_words(
    monkeypatch: pytest.MonkeyPatch, cause: str, kind: type[Exception], message: str
) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError(cause)

    monkeypatch.setattr("tofc.model.tower.Tower", failing)
    with pytest.raises(kind, match=message):
        TowerEncoder.open(NANO, compute=Compute(backend="torch")).load()


def test_what_changes_features_changes_a_picture_and_nothing_else_does(small: Path) -> None:
    checkpoint = Checkpoint.open(NANO, "device")
    choices = [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"device": "cuda"}, {"dtype": "bfloat16", "device": "cuda"}]
    settings = ["", *(Compute(**choice).setting(checkpoint) for choice in choices)]
    assert settings == ["", "", ", bfloat16", ", cuda", ", bfloat16, cuda"]
    assert Compute(device="cuda:1").setting(checkpoint) == Compute(device="cuda").setting(checkpoint)

    def identity(compute: Compute) -> bytes:
        return EncoderThread(TowerEncoder.open(NANO, compute=compute)).open(small).picture_id

    plain = identity(Compute())
    assert identity(Compute(dtype="float32", device="cpu")) == plain != identity(Compute(dtype="bfloat16"))


def test_the_tower_computes_in_the_type_asked_for(small: Path) -> None:
    def packets(dtype: str) -> list[bytes]:
        # not the default codec, whose indices are often the same
        encoder = TowerEncoder.open(NANO, compute=Compute(dtype=dtype), feature_codec="context")
        encoder.load()
        image = EncoderThread(encoder).open(small).image
        assert image is not None
        return [encoded.packet for encoded in encoder.encode(image)]

    plain = packets("float32")
    for dtype in ("bfloat16", "int8"):
        other = packets(dtype)
        assert plain != other and abs(len(plain[0]) - len(other[0])) < 10
