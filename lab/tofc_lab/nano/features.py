"""Features of many pictures, computed once by a frozen tower and kept on disk in chunks.

Promises that an interrupted run resumes with the next chunk, and that a chunk depends only on the tower and on
`(seed, kind, split, chunk)`. A picture's features are stored in prompt order: crops first, the global view last.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tofc import json_text
from tofc.errors import UsageError
from tofc_lab.progress import Progress, no_progress
from tofc_lab.resume import fingerprint, save_arrays
from tofc_lab.world import easy_vqa
from tofc_lab.world.assets import Split
from tofc_lab.world.scene import Scene, Sign, Thing, draw_scene, render

Kind = Literal["world", "large", "easy"]
#: how many pictures of each kind and split
Sizes = dict[tuple[Kind, Split], int]
TRAINING_SIZES: Sizes = {
    ("world", "train"): 24_000,
    ("large", "train"): 1600,
    ("easy", "train"): 2500,
    ("world", "validation"): 300,
}
CHUNK = 50  # pictures in a file


@dataclass(frozen=True, kw_only=True)
class CachedPicture:
    """One picture: the features [T, D] of its views in half precision, and what can be asked about it.

    `sides` are the grid sides of its views in order; `rows` × `columns` crops come first. It has either a `scene` or
    `asked`, which are fixed pairs of question and answer. `size` is the size in bytes of the image file that the tower
    saw; 0 where it saw the picture itself.
    """

    features: NDArray[np.float16]
    sides: tuple[int, ...]
    rows: int
    columns: int
    scene: Scene | None = None
    asked: tuple[tuple[str, str], ...] = ()
    size: int = 0

    def views(self) -> list[NDArray[np.float32]]:
        """Return the features of each view, float32 [N, D]."""
        ends = np.cumsum([side * side for side in self.sides])
        return [part.astype(np.float32) for part in np.split(self.features, ends[:-1])]


class TrainingPictures(NamedTuple):
    """The pictures that decoder and codec are trained on, by kind, and those of the world for validation."""

    world: list[CachedPicture]
    large: list[CachedPicture]
    easy: list[CachedPicture]
    validation: list[CachedPicture]


class TowerOutput(NamedTuple):
    """Features of each view of a picture in prompt order, its rows and columns of crops, bytes of its image file."""

    views: list[NDArray[np.float32]]
    rows: int
    columns: int
    size: int = 0


def folder(run: Path) -> Path:
    """Return the folder of a run's features, named by its tower's fingerprint."""
    return run / "features" / fingerprint(run / "tower.pt")


def scene_of(values: dict[str, Any]) -> Scene:
    """Build a scene from its JSON form."""
    return Scene(
        width=values["width"],
        height=values["height"],
        things=tuple(Thing(**t) for t in values["things"]),
        sign=Sign(**values["sign"]) if values["sign"] else None,
    )


def picture(assets: Path, kind: Kind, split: Split, seed: int, index: int) -> tuple[Image.Image, dict[str, Any]]:
    """Return picture `index` of a kind and split, and its scene or questions as JSON."""
    if kind == "easy":
        one = easy_vqa.pictures("test" if split == "test" else "train")[index]
        return one.image(), {"asked": one.questions}
    salt = {"train": 1, "validation": 2, "test": 3}[split]
    rng = np.random.default_rng([seed, salt, {"world": 0, "large": 1}[kind], index])
    if kind == "large":
        long = int(rng.integers(420, 1050))
        short = int(long * rng.uniform(0.6, 1.0))
        width, height = (long, short) if rng.random() < 0.6 else (short, long)
        scale = max(width, height) / 336
        low = rng.uniform(0.5, 0.9) * scale
        scene = draw_scene(rng, assets, width=width, height=height, size=(44 * low, min(100 * scale, 0.4 * short)))
    else:
        scene = draw_scene(rng, assets)
    return render(rng, assets, split, scene), {"scene": dataclasses.asdict(scene)}


def compute(
    assets: Path,
    out: Path,
    encode: Callable[[Image.Image], TowerOutput],
    *,
    kind: Kind,
    split: Split,
    count: int,
    seed: int = 0,
    progress: Progress = no_progress,
) -> None:
    """Write `out/kind-split-K.npz` for at least `count` pictures, in whole chunks; existing files are kept."""
    out.mkdir(parents=True, exist_ok=True)
    chunks = range((count + CHUNK - 1) // CHUNK)
    for chunk in progress(chunks, len(chunks)):
        path = out / f"{kind}-{split}-{chunk:04d}.npz"
        if path.exists():
            continue
        features: list[NDArray[np.float16]] = []
        known = []
        for index in range(chunk * CHUNK, (chunk + 1) * CHUNK):
            image, about = picture(assets, kind, split, seed, index)
            output = encode(image)
            sides = [round(len(view) ** 0.5) for view in output.views]
            about |= {"sides": sides, "rows": output.rows, "columns": output.columns, "size": output.size}
            features.extend(view.astype(np.float16) for view in output.views)
            known.append(about)
        save_arrays(path, features=np.concatenate(features), known=np.frombuffer(json.dumps(known).encode(), np.uint8))


def keep_seed(out: Path, seed: int) -> None:
    """Note the seed of the features in a folder. Raises `UsageError` if it has features of another seed."""
    file = out / "seed.json"
    kept = json_text.read(file) if file.exists() else 0 if any(out.glob("*.npz")) else seed
    if kept != seed:
        raise UsageError(
            f"{out} has features of --seed {kept}, got --seed {seed}; give the same again, name another --run, or "
            "remove that folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    json_text.write(file, seed)


def compute_all(
    assets: Path,
    out: Path,
    encode: Callable[[Image.Image], TowerOutput],
    sizes: Sizes,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> None:
    """Call `compute` for every kind and split in `sizes`."""
    for (kind, split), count in sizes.items():
        compute(assets, out, encode, kind=kind, split=split, count=count, seed=seed, progress=progress)


def load(out: Path, kind: Kind, split: Split, count: int | None = None) -> list[CachedPicture]:
    """Load the pictures that `compute` wrote, in order. Raises `UsageError` where there are none."""
    found: list[CachedPicture] = []
    for path in sorted(out.glob(f"{kind}-{split}-????.npz")):
        with np.load(path) as stored:
            features, known = stored["features"], json.loads(stored["known"].tobytes())
        at = 0
        for about in known:
            size = sum(side * side for side in about["sides"])
            found.append(
                CachedPicture(
                    features=features[at : at + size],
                    sides=tuple(about["sides"]),
                    rows=about["rows"],
                    columns=about["columns"],
                    scene=scene_of(about["scene"]) if "scene" in about else None,
                    asked=tuple((q, a) for q, a in about.get("asked", ())),
                    size=about.get("size", 0),
                )
            )
            at += size
        if count is not None and len(found) >= count:
            break
    if not found:
        raise UsageError(f"{out} has no features {kind}-{split}-*.npz; run `tofc-lab nano features` first")
    return found[:count]


def load_training(run: Path) -> TrainingPictures:
    """Load the features of a run in the numbers of `TRAINING_SIZES`. Raises `UsageError` where there are none."""
    out = folder(run)
    return TrainingPictures(*(load(out, *key, count) for key, count in TRAINING_SIZES.items()))
