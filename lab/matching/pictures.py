"""A folder of pictures: what the tower sees of each, computed once and kept on disk; which train and which judge.

Promises that an interrupted run goes on with the next picture, and that what is kept depends on the tower, the
number type and the picture's bytes alone. Leaves questions to ``questions``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lab.codec.team import Team
from shared.model.config import SplitConfig
from shared.model.open_image import open_image
from shared.model.room import need_disk
from shared.model.tower import Tower
from shared.model.views import ImageError, plan, views

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"}
HELD_OUT = 0.1  # of the pictures
Track = Callable[[Iterable[Any], int], Iterable[Any]]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One picture whose features are on disk. ``sides`` are the grid sides of its views, the global one last."""

    path: Path
    digest: str
    file: Path
    sides: tuple[int, ...]
    rows: int
    columns: int

    def views(self) -> list[NDArray[np.float32]]:
        """The features of each view [N, D]."""
        with np.load(self.file) as stored:
            features = stored["features"]
        ends = np.cumsum([side * side for side in self.sides])
        return [part.astype(np.float32) for part in np.split(features, ends[:-1])]


def find(data: Path) -> dict[str, Path]:
    """Every picture in a folder and those below it by its digest, each content once. Raises ``ValueError``."""
    if not data.is_dir():
        raise ValueError(f"{data} is no folder; give one with pictures")
    paths = sorted(path for path in data.rglob("*") if path.suffix.lower() in SUFFIXES)
    found: dict[str, Path] = {}
    for path in paths:
        with path.open("rb") as file:
            found.setdefault(hashlib.file_digest(file, "sha256").hexdigest()[:16], path)
    if len(found) < 2:
        raise ValueError(
            f"{data} has {len(found)} different pictures ({', '.join(sorted(SUFFIXES))}); at least 2 are needed, "
            "one to train on and one to judge by, and some thousand are good"
        )
    return found


def look(
    pictures: dict[str, Path],
    config: SplitConfig,
    open_tower: Callable[[], Tower],
    folder: Path,
    team: Team,
    track: Track,
    complain: Callable[[str], None],
) -> list[Seen]:
    """The features of all pictures, in the order of their digests; those that cannot be read are left out aloud.

    ``open_tower`` is called only where something has to be computed. Raises ``RoomError`` before that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    todo = {digest: path for digest, path in pictures.items() if not (folder / f"{digest}.npz").exists()}
    need_disk(sum(_bytes(path, config) for path in todo.values()), folder, "the features of the pictures")
    mine = [one for one in sorted(pictures)[team.rank :: team.size] if one in todo]  # others write meanwhile
    tower = open_tower() if mine else None
    for digest in track(mine, len(mine)):
        assert tower is not None
        try:
            image = open_image(todo[digest])
            cut, seen = plan(*image.size, config.rule), views(image, config.rule)
        except ImageError as error:
            complain(f"left out: {error}")
            continue
        features = [tower.encode(view.pixels[None])[0].astype(np.float16) for view in seen]
        if not all(np.isfinite(view).all() for view in features):
            raise ValueError(f"the features of {todo[digest]} are beyond half precision; are the weights sound?")
        sides = [config.grid(view.pixels.shape[-1]) for view in seen]
        partial = folder / f".{digest}.partial.npz"
        np.savez(partial, features=np.concatenate(features), grid=np.array([cut.rows, cut.columns, *sides]))
        partial.replace(folder / f"{digest}.npz")
    team.wait()
    return [
        _seen(digest, path, folder) for digest, path in sorted(pictures.items()) if (folder / f"{digest}.npz").exists()
    ]


def divide(seen: Sequence[Seen], most: int) -> tuple[list[Seen], list[Seen]]:
    """(to train on, to judge by): the pictures with the lowest digests judge, a tenth of all and ``most``."""
    if len(seen) < 2:
        raise ValueError(f"only {len(seen)} pictures could be read; at least 2 are needed")
    ordered = sorted(seen, key=lambda one: one.digest)
    kept = held_out(len(ordered), most)
    return ordered[kept:], ordered[:kept]


def held_out(count: int, most: int) -> int:
    """How many of ``count`` pictures judge."""
    return max(1, min(round(HELD_OUT * count), most))


def _seen(digest: str, path: Path, folder: Path) -> Seen:
    file = folder / f"{digest}.npz"
    with np.load(file) as stored:
        rows, columns, *sides = stored["grid"].tolist()
    return Seen(path=path, digest=digest, file=file, sides=tuple(sides), rows=rows, columns=columns)


def _bytes(path: Path, config: SplitConfig) -> int:
    """Of a picture's features; 0 for what is no picture, which is told later."""
    try:
        with Image.open(path) as image:
            crops = plan(*image.size, config.rule).crops
    except (OSError, ValueError, Image.DecompressionBombError):
        return 0
    cells = crops * config.grid(config.crop_size) ** 2 + config.grid(config.global_size) ** 2
    return 2 * cells * config.feature_dim
