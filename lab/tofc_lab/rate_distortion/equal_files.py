"""Which image file answers as well as a preset's packets: what `--mode auto` sends instead of features.

    rate_distortion.json ─ the preset's accuracy ─ smallest WebP at most a point below ─→ image_files.json of the codec

Promises settings that were measured, on the same validation pictures as the preset, and none where no file comes so
close.
WebP only: AVIF's files are smaller, but nano's example takes 158 ms of one core to make, longer than its features;
JPEG's are larger and were not measured on large pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tofc import json_text
from tofc.codec.files import load_config
from tofc.errors import UsageError
from tofc.model.config import read_json
from tofc.model.feature_codecs import IMAGE_FILES, codec_hash
from tofc_lab.rate_distortion.setting import setting_name

OURS, CODEC, TITLE = "TOFC (this project)", "webp", "WebP"
WITHIN_POINTS = 1.0  # percentage points of accuracy
KINDS = {"one_view": "world", "crops": "large"}


def write(results: Path, codec: Path) -> Path:
    """Write the file beside a codec, from the results of `tofc-lab rate-distortion`. Raises UsageError."""
    found, config = read_json(results), load_config(codec)
    if (made := found["codec_id"]) != (given := codec_hash(codec)):
        raise UsageError(f"{results} is about the codec {made}, {codec} holds {given}; run `tofc-lab rate-distortion`")
    presets: dict[str, Any] = {}
    for preset, rate in config.presets.items():
        settings = {"one_view": setting_name(*config.rates[rate])}
        settings["crops"] = setting_name(*config.rates[rate], config.crop_limits[rate])
        forms = {kind: _equal(found["kinds"][name]["validation"], settings[kind]) for kind, name in KINDS.items()}
        presets[preset] = {kind: form for kind, form in forms.items() if form is not None}
    out = codec / IMAGE_FILES
    told = {"command": "tofc-lab image-files", "within_points": WITHIN_POINTS, "presets": presets}
    json_text.write(out, told)
    return out


def _equal(points: dict[str, list[dict[str, Any]]], setting: str) -> dict[str, Any] | None:
    (ours,) = [point["accuracy"]["all"] for point in points[OURS] if point["setting"] == setting]
    return smallest(points[TITLE], ours - WITHIN_POINTS / 100)


def smallest(points: Sequence[dict[str, Any]], accuracy: float) -> dict[str, Any] | None:
    """Return the smallest file of at least this accuracy; None if there is none.

    >>> points = [{"setting": f"quality {q} scale 0.5", "bytes": 40 * q, "accuracy": {"all": q / 100}} for q in (3, 90)]
    >>> smallest(points, 0.5)
    {'codec': 'webp', 'quality': 90, 'scale': 0.5}
    """
    enough = [point for point in points if point["accuracy"]["all"] >= accuracy]
    if not enough:
        return None
    _, quality, _, scale = min(enough, key=lambda point: point["bytes"])["setting"].split()
    return {"codec": CODEC, "quality": int(quality), "scale": float(scale)}
