"""`tofc-lab verify` and `tofc-lab features` with --device, on a pretended GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.pretended_gpu import pretend_gpu
from tests.e2e.conftest import MODEL, PICTURES
from tests.gpu.conftest import mutate
from tofc.model.tower import Tower
from tofc_lab.cli import app
from tofc_lab.verify import checks, step3p7

PICTURE = PICTURES / "picture-11.jpg"


@pytest.fixture(autouse=True)
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision is imported only in tests/parity, which is run in its own process."""
    monkeypatch.setattr(step3p7, "import_torchvision", lambda: False)


def lab(*arguments: object) -> tuple[int, str]:
    with pretend_gpu():
        done = CliRunner().invoke(app, [str(one) for one in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_every_check_runs_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    load = Tower.__init__

    def watched(tower: Tower, *given: object) -> None:
        load(tower, *given)  # type: ignore[arg-type]
        used.append(str(tower.device))

    monkeypatch.setattr(Tower, "__init__", watched)
    code, output = lab("verify", MODEL, "--device", "cuda")
    assert code == 0 and output.count(" ok ") == 6 and used == ["cuda"], output


def test_a_mistake_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, checks, "_Comparison", "self.compute, self.dtype)", "self.dtype)")
    with pytest.raises(RuntimeError, match="same device"):
        lab("verify", MODEL, "--device", "cuda")


def test_features_are_those_of_the_cpu(tmp_path: Path) -> None:
    found = []
    for options in (["--dtype", "float16"], ["--device", "cuda"]):  # nano is stored in float16
        file = tmp_path / "features.npz"
        assert lab("features", MODEL, PICTURE, "--out", file, *options)[0] == 0
        with np.load(file) as opened:
            found.append(dict(opened))
    assert found[0].keys() == found[1].keys() and len(found[0]) > 9
    for name, array in found[0].items():
        np.testing.assert_array_equal(found[1][name], array)
