"""Models by name: those that ship, in a checkout or in a wheel (tests/test_package.py runs without `--model`)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import edge_server.cli
from device_client import cli
from device_client.options import PacketOptions
from edge_server.settings import ServerSettings
from tofc.errors import CheckpointError
from tofc.model import shipped
from tofc.model.checkpoint import Checkpoint
from tofc.model.shipped import NANO, find_model, shipped_models

NAME = Path("nano")


def test_device_and_server_take_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert PacketOptions(model=NAME).model == ServerSettings(model=NAME).model == NANO
    assert PacketOptions(model=NANO).model == NANO


def test_commands_of_server_and_lab_take_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    serve = ["serve", "--tls-cert", str(tmp_path / "none"), "--model"]
    known, unknown = (CliRunner().invoke(edge_server.cli.app, [*serve, name]) for name in ("nano", "toaster"))
    assert known.exit_code == unknown.exit_code == 2
    assert "--tls-cert" in known.stderr  # the next that is checked
    assert "name of a model that ships with TOFC (nano), got toaster" in unknown.stderr
    assert Checkpoint.open(NAME).path == NANO


def test_a_folder_comes_before_a_model_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    NAME.mkdir()
    assert find_model(NAME) == NAME and find_model(Path("./nano/device")) == Path("nano/device")


def test_only_folders_that_are_there_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path)
    for name in ("nano", "street"):
        (tmp_path / name).mkdir()
        shutil.copy(NANO / "config.json", tmp_path / name)
    (tmp_path / "half-copied").mkdir()
    assert shipped_models() == {name: tmp_path / name for name in ("nano", "street")}


def test_an_unknown_name_is_an_error_with_those_that_exist() -> None:
    with pytest.raises(CheckpointError, match=r"toaster has no config\.json; .*name of a model that ships .*: nano"):
        Checkpoint.open(find_model(Path("toaster")), "device")
    result = CliRunner().invoke(cli.app, ["ask", str(NANO / "example.jpg"), "why?", "--model", "toaster"])
    assert result.exit_code != 0 and "toaster has no config.json" in result.stderr
    assert len(result.stderr.splitlines()) == 1
