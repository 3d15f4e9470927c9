"""What others get: the source distribution is a whole checkout, and the wheel works where there is none."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: the environment as it is, without the index: the build backend is installed, torch asks for it
BUILD = "import sys, setuptools.build_meta as b; getattr(b, 'build_' + sys.argv[1])(sys.argv[2])"


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(one) for one in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked() -> list[str]:
    """The files of the project; of a source distribution, which has no git, all but what a build leaves."""
    if (ROOT / ".git").exists():
        return run("git", "ls-files", cwd=ROOT).splitlines()
    left = re.compile(r"__pycache__|\.egg-info|^PKG-INFO|^setup\.cfg|^\.\w+_cache|^\.venv|^\.hypothesis|^build/")
    found = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]
    return [name for name in found if not left.search(name)]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkout, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("out")
    for name in tracked():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    run(sys.executable, "-c", BUILD, "sdist", out, cwd=checkout)
    (found,) = out.glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    run("tar", "-xf", sdist, cwd=source)
    (unpacked,) = source.iterdir()
    run(sys.executable, "-c", BUILD, "wheel", out, cwd=unpacked)
    (found,) = out.glob("*.whl")
    return found


def test_the_source_distribution_is_a_whole_checkout(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        found = {one.name.partition("/")[2]: one.mode for one in archive.getmembers()}
    assert set(tracked()) - found.keys() == set()
    assert all(found[name] & 0o100 for name in (".ci/install", ".ci/torch"))  # `make demo` runs them


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    packages = ("shared/", "device_client/", "edge_server/", "lab/")
    assert found == {name for name in tracked() if name.startswith(packages) and name.endswith((".py", ".pyi"))}


def test_the_wheel_works_elsewhere(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, which only borrows the libraries of this one."""
    venv.create(tmp_path / "venv", symlinks=True, with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", wheel, cwd=tmp_path)
    libraries = sorted({*(path for path in sys.path if path.endswith("-packages")), sysconfig.get_path("purelib")})
    (site / "borrowed.pth").write_text("\n".join(libraries) + "\n")
    where = run(python, "-c", "import shared, lab; print(shared.__file__, lab.__file__)", cwd=tmp_path)
    assert where.count(str(site)) == 2
    for program in ("device-client", "edge-server", "tofc-lab"):
        assert "Usage" in run(python.parent / program, "--help", cwd=tmp_path)
    nano = ROOT / "models" / "nano"
    inspect = ["inspect", nano / "example.jpg", "--model", nano, "--out", tmp_path / "map.png"]
    run(python.parent / "device-client", *inspect, cwd=tmp_path)
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_what_a_package_index_shows_has_no_link_into_the_checkout(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    assert "Description-Content-Type: text/markdown" in metadata and "# TOFC" in metadata
    assert [link for link in re.findall(r"\]\(([^)]*)\)", metadata) if not link.startswith("https://")] == []
