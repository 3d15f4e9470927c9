"""A folder of pictures: the features of each, computed once and kept on disk, and which of them are held out.

Promises that an interrupted run resumes with the next picture, and that the features on disk depend only on the
tower, the number type and the picture's bytes. Leaves questions to `questions`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tofc.errors import ImageError, UsageError
from tofc.model.config import SplitConfig
from tofc.model.open_image import open_image
from tofc.model.resources import require_disk
from tofc.model.tower import Tower
from tofc.model.views import View, ViewPlan, plan, views
from tofc_lab.codec.distributed import ProcessGroup
from tofc_lab.prefetch import prefetched
from tofc_lab.progress import Log, Progress

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"}
HELD_OUT = 0.1  # share of the pictures


@dataclass(frozen=True, kw_only=True)
class StoredPicture:
    """A picture whose features are on disk. `sides` are the grid sides of its views, that of the global view last."""

    path: Path
    digest: str
    file: Path
    sides: tuple[int, ...]
    rows: int
    columns: int

    def views(self) -> list[NDArray[np.float32]]:
        """Return the features [N, D] of each view."""
        with np.load(self.file) as stored:
            features = stored["features"]
        ends = np.cumsum([side * side for side in self.sides])
        return [part.astype(np.float32) for part in np.split(features, ends[:-1])]


def find(data: Path) -> dict[str, Path]:
    """Return the pictures in a folder and its subfolders by digest; equal files count once. Raises `UsageError`."""
    if not data.is_dir():
        raise UsageError(f"{data} is not a folder; name one that has pictures")
    paths = sorted(path for path in data.rglob("*") if path.suffix.lower() in SUFFIXES)
    found: dict[str, Path] = {}
    for path in paths:
        with path.open("rb") as file:
            found.setdefault(hashlib.file_digest(file, "sha256").hexdigest()[:16], path)
    if len(found) < 2:
        raise UsageError(
            f"{data} has {len(found)} different pictures ({', '.join(sorted(SUFFIXES))}); at least 2 are needed, one "
            "to train on and one to evaluate on; use some thousand for a good codec"
        )
    return found


def encode_all(
    pictures: dict[str, Path],
    config: SplitConfig,
    open_tower: Callable[[], Tower],
    folder: Path,
    processes: ProcessGroup,
    progress: Progress,
    warn: Log,
) -> list[StoredPicture]:
    """Compute the features that are not in `folder` yet; return all pictures, in the order of their digests.

    Pictures that cannot be read are left out, with a warning. `open_tower` is called only if something must be
    computed. Raises `ResourceError` before that if the disk is too small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    todo = {digest: path for digest, path in pictures.items() if not (folder / f"{digest}.npz").exists()}
    count = sum(feature_count(path, config) for path in todo.values())
    require_disk(2 * config.feature_dim * count, folder, "the features of the pictures")
    # Divided among the processes by all pictures, not by those in `todo`: other processes are writing files already.
    mine = [one for one in sorted(pictures)[processes.rank :: processes.size] if one in todo]
    tower = open_tower() if mine else None

    def read(digest: str) -> tuple[ViewPlan, list[View]] | ImageError:
        try:
            image = open_image(todo[digest])
            return plan(*image.size, config.rule), views(image, config.rule)
        except ImageError as error:
            return error

    for digest, found in zip(progress(mine, len(mine)), prefetched(mine, read), strict=True):
        assert tower is not None
        if isinstance(found, ImageError):
            warn(f"left out: {found}")
            continue
        cut, seen = found
        features = [view.astype(np.float16) for view in tower.encode_views([view.pixels for view in seen])]
        if not all(np.isfinite(view).all() for view in features):
            raise UsageError(f"the features of {todo[digest]} exceed half precision; are the weights intact?")
        sides = [config.grid(view.pixels.shape[-1]) for view in seen]
        partial = folder / f".{digest}.partial.npz"
        np.savez(partial, features=np.concatenate(features), grid=np.array([cut.rows, cut.columns, *sides]))
        partial.replace(folder / f"{digest}.npz")
    processes.barrier()
    return [
        _stored(digest, path, folder)
        for digest, path in sorted(pictures.items())
        if (folder / f"{digest}.npz").exists()
    ]


def divide(stored: Sequence[StoredPicture], most: int) -> tuple[list[StoredPicture], list[StoredPicture]]:
    """Return (training, held out). Those with the lowest digests are held out: a tenth of all, up to `most`."""
    if len(stored) < 2:
        raise UsageError(f"only {len(stored)} pictures could be read; at least 2 are needed")
    ordered = sorted(stored, key=lambda one: one.digest)
    kept = held_out(len(ordered), most)
    return ordered[kept:], ordered[:kept]


def held_out(count: int, most: int) -> int:
    """Return how many of `count` pictures are held out, up to `most`."""
    return max(1, min(round(HELD_OUT * count), most))


def _stored(digest: str, path: Path, folder: Path) -> StoredPicture:
    file = folder / f"{digest}.npz"
    with np.load(file) as stored:
        rows, columns, *sides = stored["grid"].tolist()
    return StoredPicture(path=path, digest=digest, file=file, sides=tuple(sides), rows=rows, columns=columns)


def feature_count(path: Path, config: SplitConfig) -> int:
    """Return the features of a picture's views by its header; 0 for a file that is not a picture, reported later."""
    try:
        with Image.open(path) as image:
            crops = plan(*image.size, config.rule).crops
    except (OSError, ValueError, Image.DecompressionBombError):
        return 0
    return crops * config.grid(config.crop_size) ** 2 + config.grid(config.global_size) ** 2
