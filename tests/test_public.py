"""The distribution's commands, the advice how to install extras, and which files git ignores."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tofc.install import install

ROOT = Path(__file__).resolve().parents[1]

COMMANDS = {
    "device-client": "device_client.__main__:main",
    "edge-server": "edge_server.__main__:main",
}


def test_the_distribution_has_these_commands() -> None:
    found = {point.name: point.value for point in metadata.distribution("tofc").entry_points}
    assert found == COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_command_can_be_called(command: str) -> None:
    (point,) = metadata.entry_points(group="console_scripts", name=command)
    assert callable(point.load())


@pytest.mark.parametrize("extra", ["torch", "server", "lab", "dev"])
def test_the_advice_for_a_missing_extra_fits_a_checkout_and_an_installation(extra: str, tmp_path: Path) -> None:
    assert shlex.split(install(extra)) == [sys.executable, "-m", "pip", "install", "-e", f"{ROOT}[{extra}]"]
    python, *pip = shlex.split(install(extra, tmp_path))  # installed: no checkout to name
    assert (python, pip[:3]) == (sys.executable, ["-m", "pip", "install"])
    names = {Requirement(wanted).name for wanted in pip[3:]}
    assert "tofc" not in names and not any("extra" in wanted for wanted in pip)
    assert names == {"torch"} if extra == "torch" else len(names) > 5


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_git_ignores_what_the_documented_commands_write() -> None:
    """The most important of them is a private key."""
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "".join(document.read_text(encoding="utf-8") for document in documents)
    named = set(re.findall(r"(?:--out|--run|fake-checkpoint|--local-dir) ([a-z][\w./-]*)", text))
    assert {"halves", "credentials", "step3-vl", "mine", "run"} <= named
    written = sorted(one for one in named if not one.startswith("benchmarks/"))
    written += ["credentials/server/key.pem", "elsewhere/server/key.pem"]
    told = subprocess.run(
        ["git", "check-ignore", *(f"{one}/x" if "." not in Path(one).name else one for one in written)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert len(told.stdout.splitlines()) == len(written), sorted(set(written) - set(told.stdout.split()))
