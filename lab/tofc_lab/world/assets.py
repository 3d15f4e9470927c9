"""Fonts and photographs for nano's world, taken from Debian packages, and their split.

Promises that a photograph (with its crops, sizes and dark variants) is in exactly one of the
splits `train`, `validation` and `test`. Leaves drawing to `tofc_lab.world.scene`.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from PIL import Image, ImageFont

from tofc.errors import UsageError

Split = Literal["train", "validation", "test"]

PACKAGES = (
    "fonts-noto-color-emoji",
    "fonts-dejavu-core",
    "fonts-liberation",
    "plasma-workspace-wallpapers",
    "gnome-backgrounds",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "ukui-wallpapers",
    "mypaint-data-extras",
)
SIGN_FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "LiberationSans-Bold.ttf", "LiberationSans-Regular.ttf")
SHORT_SIDE = 640  # px: photographs are kept in memory at this size


def fetch(folder: Path, packages: Sequence[str] = PACKAGES) -> None:
    """Download and unpack Debian packages into `folder`; nothing is installed.

    Raises `UsageError` if apt-get or dpkg is missing or fails, with its message.
    """
    debs = folder / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    missing = [p for p in packages if not list(debs.glob(f"{p}_*.deb"))]
    without = "fonts and photographs come from Debian packages, so run this on Debian or Ubuntu"
    if missing:
        run_command(["apt-get", "download", *missing], debs, without)
    for deb in sorted(debs.glob("*.deb")):
        run_command(["dpkg", "-x", str(deb), str(folder / "root")], Path(), without)


def run_command(command: Sequence[str], folder: Path, without: str) -> None:
    """Run a program in `folder`. Raises `UsageError` with its message; `without`: what to do if it is not installed."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise UsageError(f"{command[0]} was not found; {without}") from None
    except subprocess.CalledProcessError as error:
        raise UsageError(f"{' '.join(command)} failed: {error.stderr.strip()}") from None


def family(path: Path) -> str:
    """Return the name of a photograph, the same for all its sizes and colour variants: the unit of the split.

    >>> family(Path("usr/share/wallpapers/Flow/contents/images_dark/720x1440.jpg"))
    'flow'
    >>> family(Path("usr/share/backgrounds/gnome/grid-d.webp"))
    'grid'
    """
    parts = path.parts
    if "wallpapers" in parts:
        return parts[parts.index("wallpapers") + 1].lower()
    stem = path.stem.lower()
    for end in ("-d", "-l"):
        stem = stem.removesuffix(end)
    return stem


def split_of(name: str) -> Split:
    """Return the split of a photograph by its name (see `family`): 65 % train, 10 % validation, 25 % test."""
    bucket = hashlib.sha256(f"tofc world {name}".encode()).digest()[0] / 256
    return "train" if bucket < 0.65 else "validation" if bucket < 0.75 else "test"


@cache
def photographs(folder: Path, split: Split) -> tuple[Image.Image, ...]:
    """Return every photograph of a split, RGB, with a short side of at most `SHORT_SIDE` px. Raises `UsageError`."""
    small = folder / "small"
    small.mkdir(parents=True, exist_ok=True)
    found = []
    for path in sorted((folder / "root").rglob("*")):
        if path.suffix.lower() not in {".jpg", ".jpeg", ".png", ".webp"} or path.is_symlink():
            continue
        if path.stem == "screenshot" or "fonts" in path.parts or split_of(family(path)) != split:
            continue
        copy = small / (hashlib.sha256(str(path.relative_to(folder)).encode()).hexdigest()[:16] + ".png")
        if not copy.exists():
            shrunk(Image.open(path).convert("RGB"), SHORT_SIDE).save(copy)
        picture = Image.open(copy)
        picture.load()
        found.append(picture)
    if not found:
        raise UsageError(f"{folder} has no photographs; run `tofc-lab assets --out {folder}` first")
    return tuple(found)


def shrunk(picture: Image.Image, short_side: int) -> Image.Image:
    """Return a picture with a short side of at most `short_side` px."""
    scale = short_side / min(picture.size)
    if scale >= 1:
        return picture
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)


@cache
def font(folder: Path, name: str, size: int) -> ImageFont.FreeTypeFont:
    """Load a font of the unpacked packages by its file name, at `size` px. Raises `UsageError`."""
    found = sorted((folder / "root").rglob(name))
    if not found:
        raise UsageError(f"{folder} has no font {name}; run `tofc-lab assets --out {folder}` first")
    return ImageFont.truetype(str(found[0]), size)
