"""If .ci/arm cannot make an emulated ARM machine, it says why in a sentence and changes nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
USED = ("bash", "cat", "dirname", "find", "ln", "mkdir", "realpath", "rm", "sed", "tar")  # besides the stubs
STUBS = {"apt-get": "exit 100", "dpkg": "echo amd64", "dpkg-deb": "exit 2"}

if not shutil.which("bash") or not shutil.which("realpath"):
    pytest.skip("needs bash and coreutils", allow_module_level=True)


def refusal(tmp_path: Path, stubs: dict[str, str], folder: Path | None = None) -> str:
    """Run .ci/arm with only the programs in USED and `stubs`, each a line of shell; return its error message."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in USED:
        (programs / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    for name, line in stubs.items():
        (programs / name).write_text(f"#!{programs}/bash\n{line}\n")
        (programs / name).chmod(0o755)
    done = subprocess.run(
        [programs / "bash", ROOT / ".ci" / "arm", folder or tmp_path / "machine"],
        env={"PATH": str(programs), "PYTHON": sys.executable}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    return done.stderr


def test_without_apt(tmp_path: Path) -> None:
    said = refusal(tmp_path, {})
    assert said.startswith("apt-get is not installed.") and "Debian or Ubuntu" in said and said.count("\n") == 1


def test_if_apt_has_no_packages_for_arm(tmp_path: Path) -> None:
    said = refusal(tmp_path, STUBS | {"apt-cache": "exit 100"})
    assert "apt offers no packages for arm64" in said and "ports" in said


def test_if_apts_python_is_too_old(tmp_path: Path) -> None:
    said = refusal(tmp_path, STUBS | {"apt-cache": "echo '  PreDepends: python3.9-minimal'"})
    assert "apt offers Python 3.9 for arm64; 3.1" in said and "newer release" in said


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis").write_text("finished")
    said = refusal(tmp_path, STUBS | {"apt-cache": "exit 100"}, mine)
    assert f"{mine} exists and is not an emulated machine" in said and (mine / "thesis").read_text() == "finished"
