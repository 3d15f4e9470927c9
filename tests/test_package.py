"""The distributions that users install: the source distribution is a whole checkout, and the wheel works without one.

Everything is installed into new environments, which use the libraries of this one. Needs no network.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from email import message_from_bytes
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tofc.model.feature_codecs import CODEC_FILES
from tofc.version import VERSION

ROOT = Path(__file__).resolve().parents[1]
#: Builds without the package index: the build backend is installed, because torch requires it.
BUILD = "import sys, setuptools.build_meta as b; getattr(b, 'build_' + sys.argv[1])(sys.argv[2])"
EXAMPLE = ROOT / "models" / "nano" / "example.jpg"
QUESTION, ANSWER = "what number is on the sign?", "42"
#: A further codec that the built model has, though this checkout may have none: its default one again.
EXTRA = [f"models/nano/codecs/extra/{name}" for name in CODEC_FILES]
WHERE = "import {0}; print({0}.__file__)"


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(one) for one in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked() -> list[str]:
    """List the project's files; without git, as in a source distribution, all but those that a build makes."""
    if (ROOT / ".git").exists():
        return run("git", "ls-files", cwd=ROOT).splitlines()
    left = re.compile(r"__pycache__|\.egg-info|^PKG-INFO|^setup\.cfg|^\.\w+_cache|^\.venv|^\.hypothesis|^(lab/)?build/")
    found = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]
    return [name for name in found if not left.search(name)]


def copy_checkout(folder: Path) -> Path:
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(kind: str, source: Path, out: Path) -> Path:
    run(sys.executable, "-c", BUILD, kind, out, cwd=source)
    (found,) = out.iterdir()
    return found


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkout = copy_checkout(tmp_path_factory.mktemp("checkout"))
    (checkout / EXTRA[0]).parent.mkdir(parents=True)
    for name in EXTRA:
        shutil.copy(ROOT / "models" / "nano" / Path(name).name, checkout / name)
    return build("sdist", checkout, tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    run("tar", "-xf", sdist, cwd=source)
    (found,) = source.iterdir()
    return found


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", unpacked, tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def lab_wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", unpacked / "lab", tmp_path_factory.mktemp("out"))


class Environment:
    """A virtual environment. It lacks the modules that the environment variable ABSENT names."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True, with_pip=False)
        self.bin, self._elsewhere = folder / "bin", folder
        self.site = Path(self.python("import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        borrowed = {*(path for path in sys.path if path.endswith("-packages")), sysconfig.get_path("purelib")}
        borrowed.add(str(metadata.distribution("numpy").locate_file("")))  # wherever the libraries are
        absent = "import os, sys; sys.modules.update(dict.fromkeys(os.environ.get('ABSENT', '').split()))"
        (self.site / "borrowed.pth").write_text("\n".join([*sorted(borrowed), absent]) + "\n")

    def python(self, script: str, cwd: Path | None = None) -> str:
        return run(self.bin / "python", "-c", script, cwd=cwd or self._elsewhere)

    def pip(self, *words: object) -> str:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.bin / "python"]
        return run(*pip, *words, cwd=self._elsewhere)

    def install(self, *words: object) -> str:
        return self.pip("install", "--no-index", "--no-deps", "--no-build-isolation", *words)


@pytest.fixture(scope="module")
def installed(wheel: Path, lab_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Both distributions, from their wheels."""
    made = Environment(tmp_path_factory.mktemp("venv"))
    made.install(wheel, lab_wheel)
    return made


@contextmanager
def serving(environment: Environment, cwd: Path, *words: str) -> Iterator[str]:
    """Run `edge-server serve` from `cwd` and yield its address."""
    command = [environment.bin / "edge-server", "serve", "--port", "0", *words]
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            yield next(line.split()[-1] for line in server.stdout if line.startswith("listening on "))
        finally:
            server.terminate()


def test_the_source_distribution_is_a_whole_checkout(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        found = {one.name.partition("/")[2]: one.mode for one in archive.getmembers()}
    assert {*tracked(), *EXTRA} - found.keys() == set()
    assert all(found[name] & 0o100 for name in (".ci/install", ".ci/torch"))  # `make demo` runs them


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    packages = ("shared/", "device_client/", "edge_server/")
    code = {name for name in tracked() if name.startswith(packages) and name.endswith((".py", ".pyi", "py.typed"))}
    nano = {name for name in [*tracked(), *EXTRA] if name.startswith("models/nano/") and "/training/" not in name}
    places = {name.removeprefix("shared/") for name in code} | {name.replace("models", "tofc") for name in nano}
    assert contents(wheel) == places
    assert {name.split("/")[0] for name in contents(wheel)} == {"device_client", "edge_server", "tofc"}


def test_the_lab_has_its_own_wheel(lab_wheel: Path) -> None:
    code = {name for name in tracked() if name.startswith("lab/tofc_lab/")}
    assert contents(lab_wheel) == {name.removeprefix("lab/") for name in code}
    versions = {recipe(name)["project"]["version"] for name in ("pyproject.toml", "lab/pyproject.toml")} | {VERSION}
    (same,) = versions
    assert recipe("lab/pyproject.toml")["project"]["dependencies"] == [f"tofc[device,server,lab]=={same}"]


def recipe(name: str) -> Any:
    return tomllib.loads((ROOT / name).read_text(encoding="utf-8"))


def described(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def required(requirements: Iterable[str], extra: str) -> set[str]:
    """Return the names of the requirements of an installation with this extra, without indirect ones."""
    every = [Requirement(one) for one in requirements]
    wanted = [one for one in every if one.marker is None or one.marker.evaluate({"extra": extra})]
    return {canonicalize_name(one.name) for one in wanted}


def with_requirements(names: Iterable[str]) -> set[str]:
    """Return `names` and all their indirect requirements, as far as they are installed here."""
    found: set[str] = set()
    queue = list(names)
    while queue:
        if (name := queue.pop()) not in found:
            found.add(name)
            with suppress(metadata.PackageNotFoundError):
                queue += required(metadata.requires(name) or [], extra="")
    return found


def test_a_device_installs_neither_a_server_nor_a_lab(wheel: Path) -> None:
    requirements = described(wheel).get_all("Requires-Dist", [])
    device, torch, server, lab = (required(requirements, extra) for extra in ("device", "torch", "server", "lab"))
    assert {"transformers", "cryptography", "grpcio-health-checking", "grpcio-reflection"} <= server - device
    extra = (server | lab | {"tofc-lab"}) - device
    assert torch - device == {"torch"} <= extra
    assert {"grpcio", "numpy"} <= with_requirements(device)
    assert with_requirements(device) & extra == set()


def test_the_wheel_works_elsewhere(installed: Environment, tmp_path: Path) -> None:
    """Even in a folder with packages of other projects that have the names of this project's folders."""
    for name in ("shared", "lab", "tests", "models"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('another project was imported')")
    for module, program in [
        ("device_client", "device-client"),
        ("edge_server", "edge-server"),
        ("tofc_lab.cli", "tofc-lab"),
    ]:
        assert Path(installed.python(WHERE.format(module), cwd=tmp_path).strip()).is_relative_to(installed.site)
        assert "Usage" in run(installed.bin / program, "--help", cwd=tmp_path)
        assert "Usage" in run(installed.bin / "python", "-m", module, "--help", cwd=tmp_path)
    run(installed.bin / "device-client", "inspect", EXAMPLE, "--out", tmp_path / "map.png", cwd=tmp_path)
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_an_installed_device_and_server_find_nano_by_themselves(installed: Environment, tmp_path: Path) -> None:
    with serving(installed, tmp_path) as address:
        ask = [installed.bin / "device-client", "ask", EXAMPLE, QUESTION, "--server", address]
        assert run(*ask, cwd=tmp_path).strip() == ANSWER
        assert run(*ask, "--feature-codec", "extra", cwd=tmp_path).strip() == ANSWER


def other_project(folder: Path, name: str) -> Path:
    """Make the wheel of another distribution of this name, with a package of the same name."""
    file = folder / f"{name}-9.0-py3-none-any.whl"
    info = f"{name}-9.0.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "WHOSE = 'theirs'\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(
            f"{info}/RECORD", f"{name}/__init__.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )
    return file


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_the_wheel_and_distributions_named_shared_and_lab_leave_each_other_alone(
    wheel: Path, lab_wheel: Path, tmp_path: Path, first: str
) -> None:
    """Distributions of these names exist; their packages have the names of two folders of this project."""
    environment = Environment(tmp_path / "venv")
    ours = [wheel, lab_wheel]
    theirs = [other_project(tmp_path, name) for name in ("shared", "lab")]
    for words in (ours, theirs) if first == "ours" else (theirs, ours):
        environment.install(*words)

    assert_theirs_work = "import shared, lab; assert shared.WHOSE == lab.WHOSE == 'theirs'"
    environment.python(assert_theirs_work)
    works = [environment.bin / "device-client", "inspect", EXAMPLE, "--out", tmp_path / "map.png"]
    run(*works, cwd=tmp_path)
    if first == "ours":
        environment.pip("uninstall", "--yes", "tofc", "tofc-lab")
        environment.python(assert_theirs_work)
        assert not [path for path in (environment.site / "tofc").rglob("*") if path.is_file()]
    else:
        environment.pip("uninstall", "--yes", "shared", "lab")
        run(*works, cwd=tmp_path)
        assert "Usage" in run(environment.bin / "tofc-lab", "--help", cwd=tmp_path)


def test_an_editable_installation_works_from_any_folder(tmp_path: Path) -> None:
    """As .ci/install makes it."""
    checkout, elsewhere = copy_checkout(tmp_path / "checkout"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = Environment(tmp_path / "venv")
    environment.install("--editable", checkout, "--editable", checkout / "lab")
    places = {"tofc": "shared/tofc", "device_client": "device_client", "tofc_lab": "lab/tofc_lab"}
    for cwd in (elsewhere, checkout):
        for module, place in places.items():
            found = environment.python(WHERE.format(module), cwd=cwd).strip()
            assert Path(found).resolve() == (checkout / place / "__init__.py").resolve()
        for program in ("device-client", "edge-server", "tofc-lab"):
            assert "Usage" in run(environment.bin / program, "--help", cwd=cwd)
        run(environment.bin / "device-client", "inspect", EXAMPLE, "--out", "map.png", cwd=cwd)


@pytest.mark.parametrize(
    ("absent", "command", "advice"),
    [
        ("torch", ["device-client", "inspect", EXAMPLE, "--out=map.png", "--backend=torch"], "torch<"),
        ("onnxruntime", ["device-client", "inspect", EXAMPLE, "--out=map.png", "--backend=onnx"], "onnxruntime<"),
        ("transformers", ["edge-server", "serve", "--port", "0"], "transformers<"),
        ("cryptography", ["edge-server", "credentials", "--out", "made"], "cryptography<"),
        ("grpc_health", ["edge-server", "serve", "--port", "0"], "grpcio-health-checking<"),
        ("matplotlib", ["tofc-lab", "curves"], "matplotlib>="),
    ],
)
def test_a_missing_library_is_named_in_a_sentence(
    installed: Environment, tmp_path: Path, absent: str, command: list[str | Path], advice: str
) -> None:
    words, lacking = [installed.bin / command[0], *command[1:]], {**os.environ, "ABSENT": absent}
    done = subprocess.run(words, cwd=tmp_path, env=lacking, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
    *_, line = done.stderr.splitlines()
    assert absent in line and "-m pip install" in line and advice in line


def test_the_description_for_a_package_index_has_no_relative_links(wheel: Path) -> None:
    about = described(wheel)
    text = str(about.get_payload())
    assert about["Description-Content-Type"] == "text/markdown" and "# TOFC" in text
    assert [link for link in re.findall(r"\]\(([^)]*)\)", text) if not link.startswith("https://")] == []
