"""How .ci/install and .ci/torch behave on other machines: the real scripts, with a fake pip that installs nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CPU = "https://download.pytorch.org/whl/cpu/torch-2.13.0%2Bcpu-cp311-linux.whl"
CUDA = "https://files.pythonhosted.org/packages/torch-2.13.0-cp311-linux.whl"
OTHER = "https://download.pytorch.org/whl/cu130/torch-2.13.0%2Bcu130-cp311-linux.whl"
#: A fake pip: with --dry-run it finds INDEX or PYPI; otherwise it prints what would be installed, and whether the hash
#: would be checked.
PIP = """
import json, os, sys
words = sys.argv[1:]
if "-c" in words:
    os.execv(sys.executable, [sys.executable, *words])
assert words[:2] == ["-m", "pip"] and "\\n" not in words[-1], words
if "--dry-run" in words:
    url = os.environ["INDEX" if "--index-url" in words else "PYPI"]
    if not url:
        sys.exit("ERROR: No matching distribution found for torch")
    asked = ["filelock"] + ['nvidia-nccl-cu13==2.29; platform_system == "Linux"'] * ("%2B" not in url)
    one = {"download_info": {"url": url}, "metadata": {"requires_dist": asked}}
    print(json.dumps({"install": [] if url == "installed" else [one]}))
else:
    with open(words[-1]) as file:
        _, _, url, *hashes = file.read().split()
    assert ("--require-hashes" in words) == bool(hashes)
    if url == os.environ.get("CHANGED"):
        sys.exit("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES")
    print("installed", url, "checked" if hashes else "unchecked")
"""


def program(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(text)
    file.chmod(0o755)
    return file


def torch(tmp_path: Path, *, index: str, pypi: str, machine: str = "x86_64", **more: str) -> tuple[int, str, str]:
    pip = tmp_path / "pip.py"
    pip.write_text(PIP)
    python = program(tmp_path / "bin", "python", f'#!/bin/sh\nexec {sys.executable} {pip} "$@"\n')
    program(tmp_path / "bin", "uname", f'#!/bin/sh\n[ "$1" = -m ] && echo {machine} || echo Linux\n')
    given = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "INDEX": index, "PYPI": pypi} | more
    done = subprocess.run([".ci/torch", python], cwd=ROOT, env=given, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_cpu_build_is_installed_without_a_message(tmp_path: Path, machine: str) -> None:
    assert torch(tmp_path, index=CPU, pypi=CUDA, machine=machine) == (0, f"installed {CPU} checked\n", "")
    assert torch(tmp_path, index="installed", pypi=CUDA, machine=machine) == (0, "", "")


def test_without_the_index_it_says_what_is_installed_and_how_to_avoid_it(tmp_path: Path) -> None:
    code, out, error = torch(tmp_path, index="", pypi=CUDA)
    assert (code, out) == (0, f"installed {CUDA} checked\n")
    assert error.startswith("https://download.pytorch.org/whl/cpu did not answer")
    assert "5 GB on disk" in error and "make TORCH_INDEX=https://" in error and "PIP_FIND_LINKS" in error


def test_on_arm_a_cuda_build_is_installed_only_if_asked_for(tmp_path: Path) -> None:
    code, out, error = torch(tmp_path, index="", pypi=CUDA, machine="aarch64")
    assert (code, out) == (1, "") and "Nothing was installed" in error and "make TORCH_INDEX= ..." in error
    asked = torch(tmp_path, index="", pypi=CUDA, machine="aarch64", TORCH_INDEX="")
    assert asked == (0, f"installed {CUDA} checked\n", "")


def test_a_cpu_build_on_pypi_needs_no_warning(tmp_path: Path) -> None:
    assert torch(tmp_path, index="", pypi=CPU, machine="aarch64") == (0, f"installed {CPU} checked\n", "")


def test_a_changed_build_is_not_installed(tmp_path: Path) -> None:
    code, out, error = torch(tmp_path, index=CPU, pypi=CUDA, CHANGED=CPU)
    assert (code, out) == (1, "") and "not one of the builds of torch==2" in error and ".ci/lock.txt" in error


def test_a_mirror_of_the_cpu_builds_is_checked_too(tmp_path: Path) -> None:
    mirror = {"TORCH_INDEX": "https://mirror/whl/cpu"}
    assert torch(tmp_path, index=CPU, pypi=CUDA, **mirror) == (0, f"installed {CPU} checked\n", "")


def test_builds_that_the_lock_does_not_know_are_named(tmp_path: Path) -> None:
    """Whoever names an index trusts it; from the usual one nothing is installed unchecked."""
    code, out, error = torch(tmp_path, index=OTHER, pypi=CUDA, TORCH_INDEX="https://download.pytorch.org/whl/cu130")
    assert (code, out) == (0, f"installed {OTHER} unchecked\n")
    assert ".ci/lock.txt has no hashes of the builds on https://download.pytorch.org/whl/cu130" in error
    assert torch(tmp_path, index=OTHER, pypi=CUDA)[1] == f"installed {OTHER} checked\n"


@pytest.mark.parametrize("lines", ["", "torch==2.13\n", "torch==2.13\ntorch==2.13\n"])
def test_versions_without_hashes_are_installed_unchecked(tmp_path: Path, lines: str) -> None:
    """As .ci/oldest writes them: a line for each extra that requires it."""
    (tmp_path / "versions.txt").write_text(lines)
    given = {"CONSTRAINTS": str(tmp_path / "versions.txt")}
    assert torch(tmp_path, index=CPU, pypi=CUDA, **given) == (0, f"installed {CPU} unchecked\n", "")


def test_without_a_lock_the_newest_is_installed_unchecked(tmp_path: Path) -> None:
    assert torch(tmp_path, index=CPU, pypi=CUDA, CONSTRAINTS="") == (0, f"installed {CPU} unchecked\n", "")


def test_if_no_index_has_torch_it_says_which_machines_are_supported(tmp_path: Path) -> None:
    code, out, error = torch(tmp_path, index="", pypi="", machine="armv7l")
    assert (code, out) == (1, "")
    assert "ERROR: No matching distribution" in error and "Linux (x86_64, aarch64; glibc 2.28 or newer)" in error


def install(python: Path, folder: Path, **more: str) -> tuple[int, str]:
    given = {"PATH": os.environ["PATH"], "HOME": str(folder.parent), "PYTHON": str(python)} | more
    words = [ROOT / ".ci/install", folder, "device"]
    done = subprocess.run(words, env=given, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.strip()


@pytest.mark.parametrize(("version", "good"), [("3.10", False), ("3.11", True), ("3.14", True), ("3.15", False)])
def test_which_pythons_are_accepted(tmp_path: Path, version: str, good: bool) -> None:
    major, minor = version.split(".")
    script = f"""
import sys
import tomllib
if "import ensurepip, venv" in sys.argv[2]:
    sys.exit(1)
sys.version_info = ({major}, {minor}, 0, "final", 0)
exec(sys.argv[2])
"""
    (tmp_path / "fake.py").write_text(script)
    python = program(tmp_path / "bin", "python3", f'#!/bin/sh\nexec {sys.executable} {tmp_path}/fake.py "$@"\n')
    code, error = install(python, tmp_path / "venv")
    assert code == 1 and not (tmp_path / "venv").exists()
    if good:  # the next check, which this interpreter fails
        assert f"sudo apt install python{version}-venv" in error
    else:
        assert f"is Python {version}; it must be 3.11 to 3.14" in error and "make PYTHON=python3.12" in error


def test_a_missing_python_is_named(tmp_path: Path) -> None:
    code, error = install(Path("python2.9"), tmp_path / "venv")
    assert code == 1 and error.startswith("python2.9 was not found; install Python 3.11 to 3.14")


def test_environment_variables_of_other_projects_do_not_redirect_the_installation(tmp_path: Path) -> None:
    """The user chooses the index that packages come from, not where they go."""
    python = program(tmp_path / "bin", "python3", f"#!/bin/sh\nenv >{tmp_path}/env\nexit 1\n")
    elsewhere = {"PIP_TARGET": "/a", "PIP_PREFIX": "/b", "PIP_ROOT": "/c", "PYTHONPATH": "/d", "PYTHONHOME": "/e"}
    kept = {
        "PIP_INDEX_URL": "https://index",
        "PIP_FIND_LINKS": "/wheels",
        "PIP_CERT": "/cert",
        "https_proxy": "http://p",
    }
    install(python, tmp_path / "venv", PIP_USER="1", PIP_REQUIRE_VIRTUALENV="1", **elsewhere, **kept)
    seen = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert not seen.keys() & elsewhere.keys()
    assert kept.items() <= seen.items()
    assert (seen["PIP_USER"], seen["PIP_REQUIRE_VIRTUALENV"]) == ("0", "0")


@pytest.mark.parametrize(
    ("place", "python", "said"),
    [
        ("{here} {here}/.venv", sys.executable, ""),
        ("/elsewhere /elsewhere/.venv", sys.executable, "was made for other paths (/elsewhere /elsewhere/.venv)"),
        ("{here} {here}/.venv", "/nonexistent/python3", "The Python that .venv was made with is gone"),
    ],
)
def test_an_environment_that_was_moved_is_made_again(tmp_path: Path, place: str, python: str, said: str) -> None:
    here = tmp_path / "here"
    shutil.copytree(ROOT / ".ci", here / ".ci")
    for name in ("Makefile", "pyproject.toml", "lab/pyproject.toml"):
        (here / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, here / name)
    (here / ".venv" / "bin").mkdir(parents=True)
    (here / ".venv" / "bin" / "python").symlink_to(python)
    (here / ".venv" / "place").write_text(place.format(here=here) + "\n")
    (here / ".venv" / "installed-demo").touch()
    path = {"PATH": os.environ["PATH"]}  # not the variables of a make that runs these tests
    words = ["make", "--dry-run", "VENV=.venv", "demo"]
    planned = subprocess.run(words, cwd=here, env=path, capture_output=True, text=True, check=True).stdout
    assert (".ci/install .venv device server" in planned) is bool(said)
    if said:
        script = f'#!/bin/sh\n[ "$2" = venv ] && exit 9\nexec {sys.executable} "$@"\n'
        other = program(tmp_path / "bin", "python3", script)
        words, given = [".ci/install", ".venv", "device"], path | {"PYTHON": str(other)}
        done = subprocess.run(words, cwd=here, env=given, capture_output=True, text=True, check=False)
        assert done.returncode == 9 and said in done.stdout
        assert not (here / ".venv").exists()


def test_every_requirement_has_a_lower_and_an_upper_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = {*project["dependencies"], *extras["device"], *extras["torch"], *extras["server"], *extras["images"]}
    assert [one for one in needed if not re.fullmatch(r"[\w-]+>=[\d.]+,<[\d.]+", one)] == []
    oldest = subprocess.run([sys.executable, ".ci/oldest"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(oldest.split()) == {one.partition(",")[0].replace(">=", "==") for one in needed}
