"""The comparison: settings chosen on validation pictures, measured on test pictures, bytes read off at equal answers.

    every setting ─ validation ─ hull ─→ few settings ─ test ─ hull ─→ bytes at 1 and 3 points under uncompressed

Promises intervals over pictures drawn again with every method on the same ones, and that a method that does not
reach an accuracy gets no figure for it. Leaves measuring to ``measure``, drawing to ``figure``.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab.nano.answerer import merging
from lab.nano.features import Kind, Sizes
from lab.rate_distortion import learned, methods
from lab.rate_distortion.hull import bytes_at, hull
from lab.rate_distortion.images import ImageFile, files
from lab.rate_distortion.measure import Bench
from lab.rate_distortion.outcomes import FAMILIES, OURS, Outcomes
from lab.resume import fingerprint
from lab.world.assets import Split
from shared import json_text
from shared.codec.codec import Codec
from shared.codec.weights import TENSOR_FILE

SIZES: Sizes = {
    ("world", "train"): 1500,
    ("world", "validation"): 150,
    ("easy", "validation"): 50,
    ("large", "validation"): 50,
    ("world", "test"): 400,
    ("easy", "test"): 200,
    ("large", "test"): 50,
}
KINDS: tuple[Kind, ...] = ("world", "easy", "large")
#: the two that are best on 336 px pictures go on to the other kinds: each file takes the tower once
IMAGE_CODECS: dict[str, tuple[str, ...]] = {
    "world": ("avif", "webp", "jpeg", "jxl"),
    "easy": ("avif", "webp"),
    "large": ("avif", "webp"),
}
CROPS = (None, 4)  # features of a crop at most
TITLES = {"avif": "AVIF", "webp": "WebP", "jpeg": "JPEG", "jxl": "JPEG XL"}
DROPS = {"1 point": 0.01, "3 points": 0.03}
FARTHEST = 0.12  # settings that lose more are of no interest
DRAWS = 500


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A setting, and how to measure it on a kind and split."""

    name: str
    features: int | None
    measure: Callable[[Kind, Split], Outcomes]


def compare(bench: Bench, run: Path, out: Path, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure what has not been measured, write ``out`` (JSON) and return it."""
    codec = Codec.load(bench.checkpoint.path)
    model = bytes.fromhex(bench.checkpoint.model_id)
    tensors = (bench.checkpoint.path / TENSOR_FILE).read_bytes()  # presets change nothing of a setting
    sets = {OURS: methods.ours(codec, tensors)}
    sets |= methods.others(bench.pictures("world", "train"), bench.answerer, bench.packer, run, model)
    weights = run / "learned" / "mean-scale.pt"
    image_codec = learned.train(bench.assets, weights, log=log)
    found: dict[str, Any] = {
        "command": "tofc-lab rate-distortion",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "model_id": bench.checkpoint.model_id,
        "codec_id": bench.checkpoint.codec_id,
        "pictures": {f"{kind} {split}": count for (kind, split), count in bench.sizes.items()},
        "seed": 0,
        "kinds": {},
    }
    for kind in KINDS:
        crops = CROPS if kind == "large" else (None,)
        tried = {
            method: [_tried(bench, method, one, crop) for one in settings for crop in crops]
            for method, settings in sets.items()
        }
        ways: dict[str, Sequence[ImageFile]] = {TITLES[name]: files(name) for name in IMAGE_CODECS[kind]}
        ways[learned.TITLE] = learned.settings(image_codec, fingerprint(weights), kind)
        for title, way in ways.items():
            tried[title] = [
                Tried(
                    name=str(file),
                    features=None,
                    measure=lambda kind, split, file=file: bench.file(file, kind, split),  # type: ignore[misc]
                )
                for file in way
            ]
        found["kinds"][kind], chosen = _kind(bench, kind, tried, log)
        # A setting of features is a rate, whatever the picture; files are tried anew on each kind, and so are crops,
        # whose names are no setting's: large pictures come last.
        sets = {method: [one for one in ways if one.name in chosen[method]] for method, ways in sets.items()}
        out.parent.mkdir(parents=True, exist_ok=True)
        json_text.write(out, found)
    return found


def _tried(bench: Bench, method: str, setting: methods.Setting, crop: int | None) -> Tried:
    """A way to send features, with at most ``crop`` of a crop."""
    name = setting.name if crop is None else f"{setting.name}, {crop} of a crop"
    return Tried(
        name=name,
        features=setting.features,
        measure=lambda kind, split: bench.reduced(
            f"{method}-{name}", lambda: setting.reduce(crop), kind, split, setting.identity
        ),
    )


def _kind(
    bench: Bench, kind: Kind, tried: dict[str, list[Tried]], log: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """What goes into the report, and the names of each method's chosen settings."""

    def whole(split: Split) -> Outcomes:
        return bench.reduced("uncompressed", merging, kind, split)

    measured: dict[str, list[tuple[Tried, Outcomes]]] = {}
    chosen: dict[str, list[str]] = {}
    for method, settings in tried.items():
        kept = list(range(len(settings)))
        if kind == "world" or settings[0].features is None:
            kept = _choose(whole("validation"), [one.measure(kind, "validation") for one in settings])
        chosen[method] = [settings[i].name for i in kept]
        if kind == "world" and method == OURS:  # and what shows whether fewer visual tokens cost answers
            kept = sorted({*kept, *(i for i, one in enumerate(settings) if one.features in (36, 12))})
        measured[method] = [(settings[i], settings[i].measure(kind, "test")) for i in kept]
        log(f"{kind} {method}: {', '.join(chosen[method])}")
    truth = whole("test")
    count = len(truth.size)
    every = np.ones((1, count))
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(float)
    families = ["all", *(f for i, f in enumerate(FAMILIES) if truth.asked[:, i].any())]
    result: dict[str, Any] = {
        "uncompressed": {family: round(float(truth.accuracy(every, family)[0]), 4) for family in families},
        "methods": {},
    }
    curves: dict[str, dict[str, dict[str, np.ndarray[Any, Any]]]] = {}
    for method, points in measured.items():
        hulled = [outcomes for one, outcomes in points if one.name in chosen[method]]
        curves[method] = {family: _at(truth, hulled, np.concatenate([every, draws]), family) for family in families}
        result["methods"][method] = {
            "points": [_point(one, outcomes, families, one.name in chosen[method]) for one, outcomes in points],
            "bytes": {
                family: {drop: _interval(values) for drop, values in at.items()}
                for family, at in curves[method].items()
            },
        }
        if kind == "world" and method == OURS:
            result["tokens"] = {}
            for n in (36, 12):
                at = _at(truth, [o for one, o in points if one.features == n], np.concatenate([every, draws]), "all")
                result["tokens"][str(n)] = {drop: _interval(values) for drop, values in at.items()}
    for method in measured:
        with np.errstate(invalid="ignore"):
            result["methods"][method]["ours"] = {
                family: {drop: _interval(_ratio(curves[OURS][family][drop], values)) for drop, values in at.items()}
                for family, at in curves[method].items()
            }
    return result, chosen


def _choose(truth: Outcomes, seen: list[Outcomes]) -> list[int]:
    """The settings on the hull that lose less than ``FARTHEST``, and the next below."""
    every = np.ones((1, len(truth.size)))
    size = [float(one.bytes(every)[0]) for one in seen]
    accuracy = [float(one.accuracy(every)[0]) for one in seen]
    kept = hull(size, accuracy)
    least = float(truth.accuracy(every)[0]) - FARTHEST
    first = next((at for at, i in enumerate(kept) if accuracy[i] >= least), len(kept) - 1)
    return kept[max(0, first - 1) :]


def _at(
    truth: Outcomes, points: list[Outcomes], weights: np.ndarray[Any, Any], family: str
) -> dict[str, np.ndarray[Any, Any]]:
    """Bytes at each drop under each of ``weights`` [W, P]; infinite where it is not reached."""
    wanted = truth.accuracy(weights, family)
    size = np.stack([one.bytes(weights) for one in points], axis=1)
    accuracy = np.stack([one.accuracy(weights, family) for one in points], axis=1)
    return {
        name: np.array([bytes_at(s, a, w - drop) or np.inf for s, a, w in zip(size, accuracy, wanted, strict=True)])
        for name, drop in DROPS.items()
    }


def _ratio(ours: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Infinite where either is not reached."""
    return np.where(np.isfinite(values), ours / values, np.inf)


def _interval(values: np.ndarray[Any, Any]) -> list[float | None]:
    """[value, 2.5 %, 97.5 %]; None where it is not reached."""
    found = [values[0], *np.quantile(values[1:], [0.025, 0.975], method="nearest")]
    return [round(float(one), 4 if one < 1 else 1) if np.isfinite(one) else None for one in found]


def _point(tried: Tried, outcomes: Outcomes, families: list[str], chosen: bool) -> dict[str, Any]:
    every = np.ones((1, len(outcomes.size)))
    return {
        "setting": tried.name,
        "chosen": chosen,
        "bytes": round(float(outcomes.bytes(every)[0]), 1),
        "visual_tokens": round(float(outcomes.tokens.mean()), 1),
        "accuracy": {family: round(float(outcomes.accuracy(every, family)[0]), 4) for family in families},
    }
