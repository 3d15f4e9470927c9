"""Installations match .ci/lock.txt to the byte; containers have limits on memory, processes, files and logs."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / ".ci" / "lock.txt").read_text()
ENTRY = re.compile(r"^([\w.-]+)==([\w.+-]+)(?: ; [^\\\n]*)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n", re.MULTILINE)
IMAGES = ("edge_server/Dockerfile", "edge_server/router.Dockerfile", "device_client/Dockerfile")
DOCKERFILES = [ROOT / part / "Dockerfile" for part in ("edge_server", "device_client")]
(BASE,) = {line for file in DOCKERFILES for line in file.read_text().splitlines() if line.startswith("ARG BASE=")}


def locked() -> dict[str, str]:
    return {name: version for name, version, _ in ENTRY.findall(LOCK)}


def test_the_lock_is_entries_with_hashes_and_nothing_else() -> None:
    """It has no options either, which could make pip use another index."""
    left = ENTRY.sub("", LOCK).splitlines()
    assert [line for line in left if not line.startswith("# ")] == []
    assert len(locked()) == len(ENTRY.findall(LOCK)) > 100


def test_every_requirement_is_locked_within_its_range() -> None:
    recipe = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = recipe["project"]
    asked = [*recipe["build-system"]["requires"], *project["dependencies"]]
    asked += [one for extra in project["optional-dependencies"].values() for one in extra]
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(locked()[canonicalize_name(requirement.name)]), requirement


def test_torch_has_hashes_of_more_builds_than_one_index_has() -> None:
    """PyPI's builds and the CPU builds, for Python 3.11 to 3.14 on two architectures."""
    (hashes,) = (hashes for name, _, hashes in ENTRY.findall(LOCK) if name == "torch")
    cpu_3_11 = "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"
    assert locked()["torch"] != "2.13.0" or cpu_3_11 in hashes
    assert hashes.count("--hash") >= 24 + 8


def wheel(folder: Path, name: str, requires: str = "") -> Path:
    file = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}.py", "")
        asked = f"Requires-Dist: {requires}\n" if requires else ""
        archive.writestr(
            f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{asked}"
        )
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return file


@pytest.mark.parametrize("changed", ["", "inner", "outer"])
def test_a_changed_file_is_not_installed(tmp_path: Path, changed: str) -> None:
    """Neither a direct nor an indirect requirement, although neither names an exact version."""
    pip = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, text=True, check=True).stdout
    if pip.split()[1] != locked()["pip"]:
        pytest.skip("this environment is older than the lock: `make test` brings its pip")
    files = [wheel(tmp_path, "inner"), wheel(tmp_path, "outer", "inner>=0.5")]
    lines = [f"pip=={locked()['pip']} \\\n    --hash=sha256:{'0' * 64}\n"]  # installed already; no file has this hash
    for file in files:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        lines.append(f"{file.name.split('-')[0]}==1.0 \\\n    --hash=sha256:{digest}\n")
    (tmp_path / "lock.txt").write_text("".join(lines))
    for file in files:
        if file.name.startswith(changed or "-"):
            with zipfile.ZipFile(file, "a") as archive:
                archive.writestr("more.py", "")
    given = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    given |= {"PIP_CONFIG_FILE": os.devnull, "CONSTRAINTS": str(tmp_path / "lock.txt")}
    words = [".ci/get", sys.executable, "--target", str(tmp_path / "site"), "outer>=0.5"]
    done = subprocess.run(words, cwd=ROOT, env=given, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) is bool(changed), done.stderr
    assert [name for name in ("inner", "outer") if (tmp_path / "site" / f"{name}.py").exists()] == (
        [] if changed else ["inner", "outer"]
    )
    if changed:
        assert f"{changed}==1.0" in done.stderr and "DO NOT MATCH THE HASHES" in done.stderr


#: A fake uv: an index has two files of every package, and torch's own index, unless CLOSED, has one.
UV = """
import os, sys
words = sys.argv[1:]
own = [word for word in words if word.startswith("--default-index=")]
if own and "CLOSED" in os.environ:
    sys.exit("error: no route")
version = os.environ["VERSION"]
hashes = ["c" * 64] if own else ["a" * 64, "b" * 64]
names = ["torch"] if own else ["torch", "numpy"] if "--all-extras" in words else ["grpcio-tools"]
text = "".join(
    " \\\\\\n".join([f"{name}=={version}", *(f"    --hash=sha256:{one}" for one in hashes)]) + "\\n" for name in names
)
(file,) = [word.partition("=")[2] for word in words if word.startswith("--output-file=")] or [None]
open(file, "w").write(text) if file else print(text, end="")
"""


def lock(tmp_path: Path, before: str, *words: str, **given: str) -> tuple[int, str, str]:
    """Run .ci/lock on a lock with the content `before`, with the fake uv and a docker that prints a digest."""
    for name in (".ci/lock", "pyproject.toml", *IMAGES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".ci" / "lock.txt").write_text(before)
    (tmp_path / "uv.py").write_text(UV)
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\necho sha256:{'d' * 64}\n")
    docker.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path), "VERSION": "2.13.0"} | given
    command = [sys.executable, ".ci/lock", *words]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    return done.returncode, (tmp_path / ".ci" / "lock.txt").read_text(), done.stderr


def hashes_of(text: str, name: str) -> list[str]:
    (found,) = (hashes for one, _, hashes in ENTRY.findall(text) if one == name)
    return [one[0] for one in re.findall(r"sha256:(\w)", found)]


OLD = f"torch==2.13.0 \\\n    --hash=sha256:{'e' * 64}\n"


def test_a_new_lock_has_the_hashes_of_both_indexes(tmp_path: Path) -> None:
    code, text, _ = lock(tmp_path, OLD)
    assert code == 0 and hashes_of(text, "torch") == ["a", "b", "c"] and hashes_of(text, "numpy") == ["a", "b"]
    assert [name for name, _, _ in ENTRY.findall(text)] == ["torch", "numpy", "grpcio-tools"]
    assert BASE in (tmp_path / "edge_server" / "Dockerfile").read_text()


def test_without_torchs_index_its_hashes_are_kept_if_the_version_is(tmp_path: Path) -> None:
    code, text, error = lock(tmp_path, OLD, CLOSED="1")
    assert code == 0 and hashes_of(text, "torch") == ["a", "b", "e"] and "were kept" in error
    code, text, error = lock(tmp_path, OLD, "--upgrade", CLOSED="1", VERSION="2.14.0")
    assert code == 1 and text == OLD and "hashes of torch 2.14.0's CPU builds are on" in error


def test_an_upgrade_renews_the_base_of_all_images(tmp_path: Path) -> None:
    code, _, error = lock(tmp_path, OLD, "--upgrade")
    assert (code, error) == (0, "")
    for file in IMAGES:
        assert f"ARG BASE=python:3.11-slim@sha256:{'d' * 64}\n" in (tmp_path / file).read_text()


def audit(tmp_path: Path, program: str) -> tuple[int, str]:
    """Run .ci/audit with `program` in place of pip-audit."""
    shutil.copy(ROOT / ".ci" / "audit", tmp_path)
    (tmp_path / "pip_audit.py").write_text(program)
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, tmp_path / "audit"], env=given, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


ONE = '{"name": "a", "version": "1", "vulns": []}'
BAD = '{"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}'
UNKNOWN = '{"name": "c", "skip_reason": "not found"}'
NOTHING = "audit: skipped, nothing was looked up: the advisory service "


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        (f"print('''{{\"dependencies\": [{ONE}]}}''')", 0, "audit: 1 packages looked up, 0 advisories\n"),
        (
            f"print('''{{\"dependencies\": [{ONE}, {BAD}]}}''')\nraise SystemExit(1)",
            1,
            "b 2: PYSEC-1, fixed in 3\naudit: 2 packages looked up, 1 advisories\n",
        ),
        (
            f"print('''{{\"dependencies\": [{ONE}, {UNKNOWN}]}}''')",
            0,
            "audit: the advisory service does not know c\naudit: 1 packages looked up, 0 advisories\n",
        ),
        (f"print('''{{\"dependencies\": [{UNKNOWN}]}}''')", 0, f"{NOTHING}knows none of the packages\n"),
        ("raise ConnectionError('no route')", 0, f"{NOTHING}did not answer\n"),
        ("raise ValueError('a bad line')", 1, ""),
    ],
)
def test_an_audit_says_what_it_found_or_could_not_look_up(tmp_path: Path, program: str, code: int, said: str) -> None:
    assert audit(tmp_path, program) == (code, said)


@pytest.mark.parametrize("name", ["credentials", "server", "client"])
def test_a_container_has_limits(name: str) -> None:
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][name]
    assert service["mem_limit"] == service["memswap_limit"]
    assert 0 < service["pids_limit"] <= 1024
    assert 0 < service["ulimits"]["nofile"] <= 65536
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all("size=" in one for one in service.get("tmpfs", []))


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_an_image_installs_from_the_lock_on_a_base_with_a_digest(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BASE}"}
    assert re.findall(r"^ARG BASE=.*@sha256:[0-9a-f]{64}$", text, re.MULTILINE) == [BASE]
    installs = [line for line in text.splitlines() if "pip install" in line]
    assert ".ci/dependencies" in text and all("--no-deps --no-build-isolation" in line for line in installs)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_an_image_has_its_half_of_nano_and_no_lab(dockerfile: Path) -> None:
    """The wheel brings all of nano, the decoder too; splitting it needs the lab."""
    text = dockerfile.read_text()
    build, _ = text.split("FROM ${BASE}\n")
    *_, environment = re.split(r"^(?=RUN rm -rf /opt/tofc\b)", build, flags=re.MULTILINE)
    assert "rm -r /opt/tofc/lib/python3*/site-packages/tofc/nano" in environment
    assert "tofc-lab" not in environment or "pip uninstall --yes tofc-lab" in environment
