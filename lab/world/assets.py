"""Fonts and photographs for the nano world, taken from Debian packages, and their split.

Promises that a photograph (with its crops, sizes and dark variants) is in exactly one of the
splits ``train``, ``validation`` and ``test``. Leaves drawing to :mod:`lab.world.scene`.
"""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path
from typing import Literal

from PIL import Image, ImageFont

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


def fetch(folder: Path) -> None:
    """Download and unpack :data:`PACKAGES` into ``folder`` (nothing is installed).

    Raises:
        RuntimeError: apt-get or dpkg is missing or failed; the message holds what it said.
    """
    debs = folder / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    missing = [p for p in PACKAGES if not list(debs.glob(f"{p}_*.deb"))]
    commands = [["apt-get", "download", *missing]] if missing else []
    try:
        for command in commands:
            subprocess.run(command, cwd=debs, check=True, capture_output=True, text=True)
        for deb in sorted(debs.glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(deb), str(folder / "root")], check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RuntimeError(f"{error.filename} not found: the world's pictures come from Debian packages") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{' '.join(error.cmd)} failed: {error.stderr.strip()}") from error


def family(path: Path) -> str:
    """What one photograph is called, whatever its size or colour variant: the unit of the split.

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
    """The split a photograph's family falls into: 65 % train, 10 % validation, 25 % test."""
    bucket = hashlib.sha256(f"tofc world {name}".encode()).digest()[0] / 256
    return "train" if bucket < 0.65 else "validation" if bucket < 0.75 else "test"


@cache
def photographs(folder: Path, split: Split) -> tuple[Image.Image, ...]:
    """Every photograph of a split, RGB, its short side at most :data:`SHORT_SIDE` px."""
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
            picture = Image.open(path).convert("RGB")
            scale = SHORT_SIDE / min(picture.size)
            if scale < 1:
                picture = picture.resize(
                    (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS
                )
            picture.save(copy)
        picture = Image.open(copy)
        picture.load()
        found.append(picture)
    if not found:
        raise FileNotFoundError(f"no photographs under {folder}: run `tofc-lab assets --out {folder}` first")
    return tuple(found)


@cache
def font(folder: Path, name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font file of the unpacked packages by its name, at ``size`` px."""
    found = sorted((folder / "root").rglob(name))
    if not found:
        raise FileNotFoundError(f"font {name} not under {folder}: run `tofc-lab assets --out {folder}` first")
    return ImageFont.truetype(str(found[0]), size)
