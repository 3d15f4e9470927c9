"""The demo with a tiny random model: real processes, real sockets, nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from tofc.codec.fake import fake_weights
from tofc_lab import demo
from tofc_lab.checkpoint import fake


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of some hundred kilobytes with a codec that fits it, and a picture."""
    folder = tmp_path_factory.mktemp("model")
    fake.write(folder)
    fake_weights(D=128, H=32).save(folder)
    fake_weights(D=128, H=32, seed=1).save(folder / "codecs" / "other")
    Image.linear_gradient("L").convert("RGB").resize((336, 252)).save(folder / "example.jpg")
    return folder


def test_the_server_answers_and_is_stopped(
    model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOFC_SERVER_MAX_NEW_TOKENS", "4")  # a random model never stops on its own
    with demo.serving(model) as address:
        demo.ask(address, ["what is in the picture?", "how many cats are there?"], model / "example.jpg", model)
        demo.ask(address, ["what is in the picture?"], model / "example.jpg", model, "other")
        with pytest.raises(demo.DemoError, match="the device ended with"):
            demo.ask(address, ["what is this?"], model / "missing.jpg", model)
    printed, costs = capfd.readouterr()
    assert f"--server {address} --model {model} --feature-codec other\n" in printed
    assert costs.count("(codec other, ") == 1
    assert "$ edge-server serve" in printed
    assert f"listening on {address}" in printed
    with pytest.raises(demo.DemoError, match="the device ended with"):
        demo.ask(address, ["is anybody there?"], model / "example.jpg", model)


def test_a_server_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(demo.DemoError, match="before it listened"), demo.serving(tmp_path):
        pytest.fail("a server came up without a model")


def test_commands_are_shown_as_one_would_type_them() -> None:
    command = ["/somewhere/bin/device-client", "ask", demo.PICTURE, "what is this?"]
    assert demo.shown(command) == f"device-client ask models{os.sep}nano{os.sep}example.jpg 'what is this?'"
