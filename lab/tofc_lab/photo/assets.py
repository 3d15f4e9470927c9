"""Photographs, fonts and words for the photo model's training pictures, taken from Debian and npm packages.

Promises that a photograph (with its sizes and variants) is in exactly one of the splits `train` and `validation`, and
that a package of npm is the one whose hash is written here. Leaves drawing to `pictures`. Nothing of these packages is
committed or shipped.
"""

from __future__ import annotations

import hashlib
import tarfile
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image

from tofc.errors import UsageError
from tofc_lab.progress import NamedProgress
from tofc_lab.world import assets as world

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


class NpmPackage(NamedTuple):
    """A package of npm: its name and version, the name of its file, and the file's SHA-256."""

    name: str
    file: str
    sha256: str


#: photographs (Creative Commons or free licences) and fonts; versions of Debian 12: mate-backgrounds 1.26.0-1,
#: fonts-lato 2.0-2.1, fonts-roboto-unhinted 2:0~20170802-3, fonts-open-sans 1.11-2, wordnet-base 1:3.0-37
DEBIAN = (
    *(name for name in world.PACKAGES if name != "fonts-noto-color-emoji"),
    "mate-backgrounds",
    "fonts-lato",
    "fonts-roboto-unhinted",
    "fonts-open-sans",
    "wordnet-base",
)
#: templates under the MIT licence with photographs as examples
NPM = (
    NpmPackage(
        "material-kit@2.0.4",
        "material-kit-2.0.4.tgz",
        "543712c988b2697c61a7ef6c9527ebf850b21b56e1bdfd7258fc6d333f725602",
    ),
    NpmPackage(
        "soft-ui-design-system@1.0.4",
        "soft-ui-design-system-1.0.4.tgz",
        "b999a9fe6dc31469bcb498c9d0560ac17060d76957abe7f1cb1c2dddf61a5095",
    ),
    NpmPackage(
        "startbootstrap-creative@7.0.7",
        "startbootstrap-creative-7.0.7.tgz",
        "746c2e46c5292e797358c90533ed695fbeb6ceff58ad7fd43284d93e9c3d0555",
    ),
)
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "LiberationSans-Bold.ttf",
    "LiberationSans-Regular.ttf",
    "LiberationSansNarrow-Bold.ttf",
    "Lato-Bold.ttf",
    "Lato-Black.ttf",
    "Lato-Regular.ttf",
    "Roboto-Bold.ttf",
    "Roboto-Medium.ttf",
    "RobotoCondensed-Bold.ttf",
    "OpenSans-Bold.ttf",
    "OpenSans-Semibold.ttf",
)
SHORT_SIDE = 720  # px: photographs are kept at this size
SMALLEST = 200  # px: smaller pictures are thumbnails and icons
ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}


def fetch(folder: Path, progress: NamedProgress) -> None:
    """Download and unpack `DEBIAN` and `NPM` into `folder`; nothing is installed.

    Raises `UsageError` if a command is missing or fails, or if a package has another hash.
    """
    world.fetch(folder, DEBIAN)
    packages = folder / "npm"
    packages.mkdir(parents=True, exist_ok=True)
    for package in progress(NPM, len(NPM), "packages of npm"):
        file = packages / package.file
        if not file.exists():
            npm_pack(package.name, packages)
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != package.sha256:
            raise UsageError(f"{file} has the SHA-256 {found}, expected {package.sha256}; remove it and try again")
        with tarfile.open(file) as archive:
            archive.extractall(folder / "root" / "npm" / package.file.removesuffix(".tgz"), filter="data")


def npm_pack(name: str, folder: Path) -> None:
    """Download the package `NAME@VERSION` of npm as a file into `folder`. Raises `UsageError`."""
    without = "some photographs come from npm's registry, so install npm"
    world.run_command(["npm", "pack", name, "--silent"], folder, without)


def split_of(name: str) -> Split:
    """Return the split of a photograph by its name (see `tofc_lab.world.assets.family`): 80 % train."""
    return "train" if hashlib.sha256(f"tofc photo {name}".encode()).digest()[0] < 205 else "validation"


@cache
def photographs(folder: Path, split: Split) -> tuple[Image.Image, ...]:
    """Return every photograph of a split, RGB, with a short side of at most `SHORT_SIDE` px. Raises `UsageError`."""
    small = folder / "small"
    small.mkdir(parents=True, exist_ok=True)
    found: dict[str, Image.Image] = {}
    for path in sorted((folder / "root").rglob("*")):
        if path.suffix.lower() not in ENDINGS or path.is_symlink() or path.stem == "screenshot":
            continue
        if "dist" in path.parts or "fonts" in path.parts or split_of(world.family(path)) != split:
            continue
        copy = small / (hashlib.sha256(str(path.relative_to(folder)).encode()).hexdigest()[:16] + ".jpg")
        if not copy.exists() and not _shrink(path, copy):
            continue
        picture = Image.open(copy)
        picture.load()
        found.setdefault(hashlib.sha256(picture.tobytes()).hexdigest(), picture)
    if not found:
        raise UsageError(f"{folder} has no photographs; run `tofc-lab photo assets --assets {folder}` first")
    return tuple(found.values())


def _shrink(path: Path, copy: Path) -> bool:
    """Write a picture at the size in which it is kept; return whether it is large and colourful enough to be one."""
    with Image.open(path) as opened:
        if min(opened.size) < SMALLEST or opened.mode in {"P", "1"}:
            return False
        picture = opened.convert("RGB")
    world.shrunk(picture, SHORT_SIDE).save(copy, quality=92)
    return True


@cache
def words(folder: Path) -> tuple[str, ...]:
    """Return WordNet's nouns of three to nine letters, in capitals, for signs. Raises `UsageError`."""
    path = folder / "root/usr/share/wordnet/index.noun"
    if not path.exists():
        raise UsageError(f"{path} is missing; run `tofc-lab photo assets --assets {folder}` first")
    lines = path.read_text(encoding="utf-8").splitlines()
    nouns = (line.split(" ", 1)[0] for line in lines if not line.startswith(" "))
    return tuple(noun.upper() for noun in nouns if noun.isalpha() and noun.isascii() and 3 <= len(noun) <= 9)
