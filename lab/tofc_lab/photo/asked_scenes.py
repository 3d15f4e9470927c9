"""Features of scenes with questions about them: made anew for every step of the decoder, or kept on disk.

    maps ─ scene (things put in) ─┬─ tower ─ features [36, D] ─┐
                                  └─ questions and answers ────┴─ asked scene ─ chunk

Promises that a scene depends only on the maps, the tower and `(seed, split, number)`, and that an interrupted
computation resumes with the next chunk. A picture occurs again, with other things in it, in later scenes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tofc.errors import UsageError
from tofc_lab.nano.features import CachedPicture
from tofc_lab.nano.packing import QuestionAnswer
from tofc_lab.photo import assets, scene
from tofc_lab.photo.assets import Split
from tofc_lab.photo.features import Maps
from tofc_lab.photo.pictures import GRID
from tofc_lab.photo.questions import ask
from tofc_lab.photo.tower import Reader
from tofc_lab.progress import Progress, no_progress
from tofc_lab.resume import fingerprint, save_arrays

CHUNK = 250  # scenes in a file
TURNS = 16  # questions about a scene, at most


@dataclass(frozen=True, kw_only=True)
class AskedScene(CachedPicture):
    """The features of a scene and the questions about it."""

    questions: tuple[QuestionAnswer, ...]


def folder(run: Path) -> Path:
    """Return the folder of a run's scenes, named by its tower's fingerprint."""
    return run / "scenes" / fingerprint(run / "tower.pt")


@torch.inference_mode()
def features_of(reader: Reader, head: NDArray[np.float32], middle: NDArray[np.float16]) -> NDArray[np.float16]:
    """Return the features [P, 36, D] of maps [P, 36, 1280] and [P, 123, 21, 21]."""
    found = reader(torch.from_numpy(head), torch.from_numpy(middle.astype(np.float32)))
    features: NDArray[np.float16] = found.to(torch.float16).numpy()
    return features


def make(maps: Maps, reader: Reader, split: Split, numbers: Sequence[int], seed: int) -> list[AskedScene]:
    """Return the scenes of these numbers; a scene depends only on the maps, the tower and `(seed, split, number)`."""
    built, asked = [], []
    for number in numbers:
        rng, at = np.random.default_rng([seed, 53, assets.SPLITS.index(split), number]), number % len(maps)
        built.append(scene.build(rng, maps.head[at], maps.colours[at], maps.known[at]))
        asked.append(tuple(ask(rng, built[-1], TURNS)))
    middle = maps.middle[[number % len(maps) for number in numbers]]
    features = features_of(reader, np.stack([one.head for one in built]), middle)
    return [_asked_scene(*pair) for pair in zip(features, asked, strict=True)]


def _asked_scene(features: NDArray[np.float16], questions: tuple[QuestionAnswer, ...]) -> AskedScene:
    return AskedScene(features=features, sides=(GRID,), rows=0, columns=0, questions=questions)


def compute(
    maps: Maps, reader: Reader, out: Path, split: Split, count: int, *, seed: int = 0, progress: Progress = no_progress
) -> None:
    """Write `out/SPLIT-K.npz` for the first `count` scenes; existing files are kept."""
    out.mkdir(parents=True, exist_ok=True)
    chunks = range(-(-count // CHUNK))
    for chunk in progress(chunks, len(chunks)):
        path = out / f"{split}-{chunk:04d}.npz"
        if path.exists():
            continue
        scenes = make(maps, reader, split, range(chunk * CHUNK, min((chunk + 1) * CHUNK, count)), seed)
        known = [[_stored(one) for one in scene.questions] for scene in scenes]
        save_arrays(
            path,
            features=np.stack([one.features for one in scenes]),
            known=np.frombuffer(json.dumps(known).encode(), np.uint8),
        )


def _stored(one: QuestionAnswer) -> list[Any]:
    named = [(word, sorted(slots)) for word, slots in one.named]
    return [one.family, one.text, one.answer, named, sorted(one.shown)]


def load(out: Path, split: Split) -> list[AskedScene]:
    """Load the scenes that `compute` wrote, in order. Raises `UsageError` where there are none."""
    found = []
    for path in sorted(out.glob(f"{split}-????.npz")):
        with np.load(path) as stored:
            features, known = stored["features"], json.loads(stored["known"].tobytes())
        for given, asked in zip(features, known, strict=True):
            questions = tuple(
                QuestionAnswer(
                    family=family,
                    text=text,
                    answer=answer,
                    named=tuple((word, frozenset(slots)) for word, slots in named),
                    shown=frozenset(shown),
                )
                for family, text, answer, named, shown in asked
            )
            found.append(_asked_scene(given, questions))
    if not found:
        raise UsageError(f"{out} has no scenes {split}-*.npz; run `tofc-lab photo train` first")
    return found
