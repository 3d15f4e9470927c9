"""Features of many pictures, computed once by a frozen tower and kept on disk in chunks.

Promises that an interrupted run goes on with the next chunk, and that a chunk depends only on the tower
and ``(seed, kind, split, chunk)``. A picture's features are stored in prompt order: crops, global last.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lab.resume import fingerprint
from lab.world import easy_vqa
from lab.world.assets import Split
from lab.world.scene import Scene, Sign, Thing, draw_scene, render

Kind = Literal["world", "large", "easy"]
#: how many pictures of each kind and split
Sizes = dict[tuple[Kind, Split], int]
CHUNK = 50


@dataclass(frozen=True, kw_only=True)
class Cached:
    """One picture: its features [views' features, D] in half precision and what can be asked of it.

    ``sides`` are the grid sides of its views in order; ``rows`` × ``columns`` crops come first.
    Either ``scene`` or ``asked`` (fixed question–answer pairs) is there. ``size`` is that of the image file that
    the tower saw, in bytes; 0 where it saw the picture itself.
    """

    features: NDArray[np.float16]
    sides: tuple[int, ...]
    rows: int
    columns: int
    scene: Scene | None = None
    asked: tuple[tuple[str, str], ...] = ()
    size: int = 0

    def views(self) -> list[NDArray[np.float32]]:
        """The features of each view, float32 [N, D]."""
        ends = np.cumsum([side * side for side in self.sides])
        return [part.astype(np.float32) for part in np.split(self.features, ends[:-1])]


class Seen(NamedTuple):
    """What a tower makes of a picture: features of each view in prompt order, crops, bytes of the file it came as."""

    views: list[NDArray[np.float32]]
    rows: int
    columns: int
    size: int = 0


def folder(run: Path) -> Path:
    """Where a run's features lie; another tower's lie elsewhere."""
    return run / "features" / fingerprint(run / "tower.pt")


def scene_of(values: dict[str, Any]) -> Scene:
    """A scene from its JSON form."""
    return Scene(
        width=values["width"],
        height=values["height"],
        things=tuple(Thing(**t) for t in values["things"]),
        sign=Sign(**values["sign"]) if values["sign"] else None,
    )


def picture(folder: Path, kind: Kind, split: Split, seed: int, index: int) -> tuple[Image.Image, dict[str, Any]]:
    """Picture ``index`` of a kind and split, and what is known of it in JSON form."""
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
        scene = draw_scene(rng, folder, width=width, height=height, size=(44 * low, min(100 * scale, 0.4 * short)))
    else:
        scene = draw_scene(rng, folder)
    return render(rng, folder, split, scene), {"scene": dataclasses.asdict(scene)}


def compute(
    folder: Path,
    out: Path,
    encode: Callable[[Image.Image], Seen],
    *,
    kind: Kind,
    split: Split,
    count: int,
    seed: int = 0,
    progress: Callable[[Iterable[int], int], Iterable[int]] = lambda chunks, _: chunks,
) -> None:
    """Fill ``out/kind-split-K.npz`` with at least ``count`` pictures, whole chunks; those that are there are kept."""
    out.mkdir(parents=True, exist_ok=True)
    chunks = range((count + CHUNK - 1) // CHUNK)
    for chunk in progress(chunks, len(chunks)):
        path = out / f"{kind}-{split}-{chunk:04d}.npz"
        if path.exists():
            continue
        features: list[NDArray[np.float16]] = []
        known = []
        for index in range(chunk * CHUNK, (chunk + 1) * CHUNK):
            image, about = picture(folder, kind, split, seed, index)
            seen = encode(image)
            sides = [round(len(view) ** 0.5) for view in seen.views]
            about |= {"sides": sides, "rows": seen.rows, "columns": seen.columns, "size": seen.size}
            features.extend(view.astype(np.float16) for view in seen.views)
            known.append(about)
        new = path.with_suffix(".new.npz")
        np.savez(new, features=np.concatenate(features), known=np.frombuffer(json.dumps(known).encode(), np.uint8))
        new.replace(path)


def load(out: Path, kind: Kind, split: Split, count: int | None = None) -> list[Cached]:
    """Pictures that :func:`compute` left, in order."""
    found: list[Cached] = []
    for path in sorted(out.glob(f"{kind}-{split}-????.npz")):
        with np.load(path) as stored:
            features, known = stored["features"], json.loads(stored["known"].tobytes())
        at = 0
        for about in known:
            size = sum(side * side for side in about["sides"])
            found.append(
                Cached(
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
        raise FileNotFoundError(f"no features {kind}-{split}-*.npz in {out}: run `tofc-lab nano features` first")
    return found[:count]
