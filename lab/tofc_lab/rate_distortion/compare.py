"""The comparison: settings chosen on validation pictures, measured on test pictures, bytes read at equal answers.

    every setting ─ validation ─ hull ─→ few settings ─ test ─ hull ─→ bytes at 1 and 3 points under uncompressed

Promises bootstrap intervals that resample the same pictures for every method, and no number where a method does not
reach an accuracy. Leaves measuring to `measure`, drawing to `figure`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tofc import json_text
from tofc.codec.codec import Codec
from tofc.codec.weights import TENSOR_FILE
from tofc.errors import UsageError
from tofc_lab import results
from tofc_lab.nano.answerer import merging
from tofc_lab.nano.features import Kind, Sizes
from tofc_lab.progress import Log, print_now
from tofc_lab.rate_distortion import equal_files, learned, methods
from tofc_lab.rate_distortion.hull import bytes_at, hull
from tofc_lab.rate_distortion.images import ImageCodecSetting, files, prefiltered_files
from tofc_lab.rate_distortion.index_methods import IndexMethods
from tofc_lab.rate_distortion.measure import Benchmark
from tofc_lab.rate_distortion.outcomes import FAMILIES, OURS, Outcomes
from tofc_lab.rate_distortion.setting import Setting, of_crops, setting_name
from tofc_lab.rate_distortion.training_views import Training
from tofc_lab.resume import fingerprint
from tofc_lab.world.assets import Split

SIZES: Sizes = {
    ("world", "train"): 1500,
    ("easy", "train"): 200,
    ("large", "train"): 100,
    ("world", "validation"): 150,
    ("easy", "validation"): 50,
    ("large", "validation"): 50,
    ("world", "test"): 400,
    ("easy", "test"): 200,
    ("large", "test"): 50,
}
KINDS: tuple[Kind, ...] = ("world", "easy", "large")
#: on the other kinds only the two that are best on 336 px pictures: the tower must be run for each file
IMAGE_CODECS: dict[str, tuple[str, ...]] = {
    "world": ("avif", "webp", "jpeg", "jxl"),
    "easy": ("avif", "webp"),
    "large": ("avif", "webp"),
}
CROPS = (None, 4)  # features of a crop at most
TITLES = {"avif": "AVIF", "webp": "WebP", "jpeg": "JPEG", "jxl": "JPEG XL"}
PREFILTERED = {"avif": "AVIF, prefiltered for each question", "webp": "WebP, prefiltered for each question"}
FEW = (100, 3)  # pictures and questions about each, for image files of which every question needs another
DROPS = {"1 point": 0.01, "3 points": 0.03}
#: other codecs of the checkpoint that are compared with ours, by their folder; nano has them
CODECS = {"TOFC as published": Path("codecs", "published"), "components + context model": Path("codecs", "context")}
LARGEST_LOSS = 0.12  # of accuracy; settings that lose more are not measured on test pictures
DRAWS = 500  # of the bootstrap


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A setting, and a function that measures it on a kind and split of pictures."""

    name: str
    features: int | None
    measure: Callable[[Kind, Split], Outcomes]


def compare(
    benchmark: Benchmark, run: Path, out: Path, log: Log = print_now, only: Collection[str] | None = None
) -> dict[str, Any]:
    """Measure what has not been measured yet, write `out` (JSON) and return it.

    With `only`, these methods and ours; the others remain as `out` has them. Raises UsageError if they cannot, because
    they were measured on other pictures or with another model.
    """
    found: dict[str, Any] = {
        "command": "tofc-lab rate-distortion",
        "model_id": benchmark.checkpoint.model_id,
        "pictures": {f"{kind} {split}": count for (kind, split), count in benchmark.sizes.items()},
        "seed": 0,
        "codec_id": benchmark.checkpoint.codec_id,
    }
    kept = earlier(out, found) if only is not None else {"kinds": {}}
    model = bytes.fromhex(benchmark.checkpoint.model_id)
    others = {method: benchmark.checkpoint.path / folder for method, folder in CODECS.items()}
    folders = {OURS: benchmark.checkpoint.codec_path} | {name: path for name, path in others.items() if path.is_dir()}
    codecs = {method: Codec.load(path) for method, path in folders.items()}
    # Without codec.json: presets do not matter here.
    feature_methods = {
        method: methods.packets(codec, (folders[method] / TENSOR_FILE).read_bytes()) for method, codec in codecs.items()
    }
    feature_methods |= methods.others(partial(benchmark.pictures, "world", "train"), benchmark.answerer, model)
    projector = benchmark.answerer.projector.weight.detach().double().numpy()
    feature_methods |= IndexMethods(
        lambda: Training.of(benchmark.training(), projector),
        run / "codebooks",
        model + benchmark.training_identity(),
        log,
    ).settings()
    if only is not None:
        known = {*feature_methods, *TITLES.values(), *PREFILTERED.values(), learned.TITLE}
        if unknown := next((name for name in only if name not in known), None):
            raise UsageError(f"there is no method {unknown!r} to compare; there are {', '.join(sorted(known))}")
        feature_methods = {name: found for name, found in feature_methods.items() if name == OURS or name in only}
    of_rates = {
        method: _rates(benchmark, method, codec, feature_methods[method])
        for method, codec in codecs.items()
        if method in feature_methods
    }
    weights = run / "learned" / "mean-scale.pt"
    image_codec = learned.train(benchmark.assets, weights, log=log) if _wanted(learned.TITLE, only) else None
    this_run = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    found |= kept | this_run | {"vector_quantisers_fitted_to": benchmark.training_identity().decode()}
    for kind in KINDS:
        crops = CROPS if kind == "large" else (None,)
        tried = {
            method: [_candidate(benchmark, method, one, crop) for one in settings for crop in crops]
            for method, settings in feature_methods.items()
        }
        files_of: dict[str, Sequence[ImageCodecSetting]] = {
            TITLES[name]: files(name) for name in IMAGE_CODECS[kind] if _wanted(TITLES[name], only)
        }
        if image_codec is not None:
            files_of[learned.TITLE] = learned.settings(image_codec, fingerprint(weights), kind)
        tried |= {method: _files(of_method, benchmark.file) for method, of_method in files_of.items()}
        measured, chosen = _measure_chosen(benchmark, kind, tried, log)
        baseline = benchmark.reduced("uncompressed", merging, kind, "test")
        report = _report(baseline, measured, chosen, tokens=kind == "world")
        report["methods"] = {name: this_run | one for name, one in report["methods"].items()}
        had = found["kinds"].get(kind)
        found["kinds"][kind] = with_earlier(report, had)
        if kind in equal_files.KINDS.values():
            shown = {name: tried[name] for name in (OURS, equal_files.TITLE) if name in tried}
            if kind == "large":
                shown |= of_rates
            now = {name: _on_validation(candidates, kind) for name, candidates in shown.items()}
            found["kinds"][kind]["validation"] = (had or {}).get("validation", {}) | now
        # Settings for features are chosen on 336 px pictures and used on all kinds. Settings for image files are chosen
        # on each kind, and so are those for crops, which only large pictures have: that kind comes last.
        feature_methods = {
            method: [one for one in settings if one.name in chosen[method]]
            for method, settings in feature_methods.items()
        }
        if kind == "world" and any(_wanted(method, only) for method in PREFILTERED.values()):
            found["prefiltered"] = _prefiltered(benchmark, feature_methods[OURS], log)
        out.parent.mkdir(parents=True, exist_ok=True)
        json_text.write(out, found)
    return found


def earlier(out: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Return what a run of a few methods keeps of the measurements in `out`, if there is that file.

    Raises UsageError unless model, seed, validation and test pictures are those of `found`.
    """
    if not out.exists():
        return {"kinds": {}}
    had = {"kinds": results.read(out, "kinds")} | json_text.read(out)
    for key in ("model_id", "seed", "pictures"):
        before, now = (_without_training(one.get(key)) for one in (had, found))
        if before != now:
            raise UsageError(f"{out} has measurements with {key} {before}, not {now}; give another --out")
    for report in had["kinds"].values():
        for one in report["methods"].values():
            one |= {key: one.get(key, had.get(key)) for key in ("date", "machine")}
    same_codec = had.get("codec_id") == found["codec_id"]
    return {key: had[key] for key in ("kinds", *(("prefiltered",) if same_codec else ())) if key in had}


def _without_training(pictures: Any) -> Any:
    if not isinstance(pictures, dict):
        return pictures
    return {name: count for name, count in pictures.items() if not name.endswith("train")}


def with_earlier(report: dict[str, Any], kept: dict[str, Any] | None) -> dict[str, Any]:
    """Return a report that has also the methods which only the earlier one has; their ratios have no intervals."""
    if kept is None:
        return report
    if kept["uncompressed"] != report["uncompressed"]:
        raise UsageError(f"uncompressed features gave {kept['uncompressed']}, now {report['uncompressed']}")
    ours = report["methods"][OURS]["bytes"]
    for name in kept["methods"].keys() - report["methods"].keys():
        one = kept["methods"][name]
        one["ours"] = {
            family: {drop: [_quotient(ours[family][drop][0], size[0]), None, None] for drop, size in at.items()}
            for family, at in one["bytes"].items()
        }
    methods = {name: report["methods"].get(name, one) for name, one in kept["methods"].items()}
    return report | {"methods": methods | report["methods"]}


def _quotient(ours: float | None, other: float | None) -> float | None:
    return None if ours is None or other is None else round(ours / other, 4)


def _prefiltered(benchmark: Benchmark, ours: Sequence[Setting], log: Log) -> dict[str, Any]:
    """Return the report about fewer questions, of which image files that are prefiltered need one each."""
    few = benchmark.few(*FEW)
    tried = {OURS: [_candidate(few, OURS, one, None) for one in ours]}
    for codec, title in PREFILTERED.items():
        tried[TITLES[codec]] = _files(files(codec), few.file)  # whose features are there from the whole comparison
        tried[title] = _files(prefiltered_files(codec), few.prefiltered)
    measured, chosen = _measure_chosen(few, "world", tried, log)
    report = _report(few.reduced("uncompressed", merging, "world", "test"), measured, chosen, tokens=False)
    return {"pictures": FEW[0], "questions": FEW[1], **report}


def _files(
    settings: Sequence[ImageCodecSetting], measure: Callable[[ImageCodecSetting, Kind, Split], Outcomes]
) -> list[Candidate]:
    return [Candidate(name=str(one), features=None, measure=partial(measure, one)) for one in settings]


def _wanted(method: str, only: Container[str] | None) -> bool:
    return only is None or method in only


def _candidate(benchmark: Benchmark, method: str, setting: Setting, crop: int | None) -> Candidate:
    """Return a setting for features as a candidate, with at most `crop` features of a crop (None: as of any view)."""
    name = of_crops(setting.name, crop)
    return Candidate(
        name=name,
        features=setting.features,
        measure=lambda kind, split: benchmark.reduced(
            f"{method}-{name}", lambda: setting.reduce(crop), kind, split, setting.identity
        ),
    )


def _rates(benchmark: Benchmark, method: str, codec: Codec, settings: Sequence[Setting]) -> list[Candidate]:
    """Return a codec's rates as candidates, with each of `CROPS`: on validation they choose its `crop_features`."""
    names = {setting_name(*rate) for rate in codec.config.rates}
    return [_candidate(benchmark, method, one, crop) for one in settings if one.name in names for crop in CROPS]


def _measure_chosen(
    benchmark: Benchmark, kind: Kind, tried: dict[str, list[Candidate]], log: Log
) -> tuple[dict[str, list[tuple[Candidate, Outcomes]]], dict[str, list[str]]]:
    """Choose settings on validation pictures and measure them on test pictures.

    Returns both by method: the settings with their outcomes, and the names of the chosen ones. Of our own method a few
    more settings are measured on 336 px pictures.
    """
    measured: dict[str, list[tuple[Candidate, Outcomes]]] = {}
    chosen: dict[str, list[str]] = {}
    for method, settings in tried.items():
        kept = list(range(len(settings)))
        if kind == "world" or settings[0].features is None:
            baseline = benchmark.reduced("uncompressed", merging, kind, "validation")
            kept = _choose(baseline, [one.measure(kind, "validation") for one in settings])
        chosen[method] = [settings[i].name for i in kept]
        if kind == "world" and method == OURS:  # also the settings that show whether fewer visual tokens cost answers
            kept = sorted({*kept, *(i for i, one in enumerate(settings) if one.features in (36, 12))})
        measured[method] = [(settings[i], settings[i].measure(kind, "test")) for i in kept]
        log(f"{kind} {method}: {', '.join(chosen[method])}")
    return measured, chosen


def _report(
    baseline: Outcomes,
    measured: dict[str, list[tuple[Candidate, Outcomes]]],
    chosen: dict[str, list[str]],
    tokens: bool,
) -> dict[str, Any]:
    """Return the report about a kind; with `tokens` also our bytes with 36 and with 12 features of a view."""
    count = len(baseline.size)
    every = np.ones((1, count))
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(float)
    weights = np.concatenate([every, draws])
    families = ["all", *(f for i, f in enumerate(FAMILIES) if baseline.asked[:, i].any())]
    result: dict[str, Any] = {
        "uncompressed": {family: round(float(baseline.accuracy(every, family)[0]), 4) for family in families},
        "methods": {},
    }
    curves: dict[str, dict[str, dict[str, np.ndarray[Any, Any]]]] = {}
    for method, points in measured.items():
        hulled = [outcomes for one, outcomes in points if one.name in chosen[method]]
        curves[method] = {family: _bytes_at_drops(baseline, hulled, weights, family) for family in families}
        result["methods"][method] = {
            "points": [
                _point(one, outcomes, families) | {"chosen": one.name in chosen[method]} for one, outcomes in points
            ],
            "bytes": {
                family: {drop: _interval(values) for drop, values in at.items()}
                for family, at in curves[method].items()
            },
        }
        if tokens and method == OURS:
            result["tokens"] = {}
            for n in (36, 12):
                of_n = [outcomes for one, outcomes in points if one.features == n]
                at = _bytes_at_drops(baseline, of_n, weights, "all")
                result["tokens"][str(n)] = {drop: _interval(values) for drop, values in at.items()}
    for method in measured:
        with np.errstate(invalid="ignore"):
            result["methods"][method]["ours"] = {
                family: {drop: _interval(_ratio(curves[OURS][family][drop], values)) for drop, values in at.items()}
                for family, at in curves[method].items()
            }
    return result


def _choose(baseline: Outcomes, measured: list[Outcomes]) -> list[int]:
    """Return the settings on the hull that lose at most `LARGEST_LOSS`, and the next one with fewer bytes."""
    every = np.ones((1, len(baseline.size)))
    size = [float(one.bytes(every)[0]) for one in measured]
    accuracy = [float(one.accuracy(every)[0]) for one in measured]
    kept = hull(size, accuracy)
    least = float(baseline.accuracy(every)[0]) - LARGEST_LOSS
    first = next((at for at, i in enumerate(kept) if accuracy[i] >= least), len(kept) - 1)
    return kept[max(0, first - 1) :]


def _bytes_at_drops(
    baseline: Outcomes, points: list[Outcomes], weights: np.ndarray[Any, Any], family: str
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the bytes at each drop of accuracy under each of `weights` [W, P]; infinite where it is not reached."""
    wanted = baseline.accuracy(weights, family)
    size = np.stack([one.bytes(weights) for one in points], axis=1)
    accuracy = np.stack([one.accuracy(weights, family) for one in points], axis=1)
    return {
        name: np.array([bytes_at(s, a, w - drop) or np.inf for s, a, w in zip(size, accuracy, wanted, strict=True)])
        for name, drop in DROPS.items()
    }


def _ratio(ours: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return our bytes over those of the other method; infinite where one of them does not reach the accuracy."""
    return np.where(np.isfinite(values), ours / values, np.inf)


def _interval(values: np.ndarray[Any, Any]) -> list[float | None]:
    """Return [value, its 2.5 % and 97.5 % quantiles], None where the accuracy is not reached."""
    found = [values[0], *np.quantile(values[1:], [0.025, 0.975], method="nearest")]
    return [round(float(one), 4 if one < 1 else 1) if np.isfinite(one) else None for one in found]


def _on_validation(settings: Sequence[Candidate], kind: Kind) -> list[dict[str, Any]]:
    """Return the points of all settings on validation pictures.

    By these, image files are chosen (`equal_files`), and how many features of a crop a codec keeps at each rate.
    """
    return [_point(one, one.measure(kind, "validation"), ["all"]) for one in settings]


def _point(tried: Candidate, outcomes: Outcomes, families: list[str]) -> dict[str, Any]:
    every = np.ones((1, len(outcomes.size)))
    return {
        "setting": tried.name,
        "bytes": round(float(outcomes.bytes(every)[0]), 1),
        "visual_tokens": round(float(outcomes.tokens.mean()), 1),
        "accuracy": {family: round(float(outcomes.accuracy(every, family)[0]), 4) for family in families},
    }
