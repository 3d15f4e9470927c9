"""The measurement of nano's accuracy by family of questions: merged and not, compressed and not.

Promises to use the weights that ship (half precision in the file, float32 in the tower), and only test pictures.
Features that an interrupted run has computed are reused.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tofc import json_text
from tofc.codec.codec import Codec
from tofc.model.checkpoint import Checkpoint
from tofc.model.config import SplitConfig
from tofc.model.feature_codecs import DEFAULT
from tofc.model.prompt import load_tokenizer
from tofc.model.views import plan, views
from tofc.model.vision_tower import VisionTower, open_tower
from tofc_lab.nano import features
from tofc_lab.nano.answerer import Reduce, merging
from tofc_lab.nano.evaluate import Outcome, accuracy, coded, coded_at, intervals, mean_size, score
from tofc_lab.nano.packing import Packer
from tofc_lab.nano.unpack import answerer_of
from tofc_lab.progress import Log, Progress, print_now

TEST_SIZES: features.Sizes = {("world", "test"): 1000, ("large", "test"): 150, ("easy", "test"): 1000}
MERGED = (24, 16, 12, 8)  # features of a view


def shipped_encoder(tower: VisionTower, config: SplitConfig) -> Callable[[Image.Image], features.TowerOutput]:
    """Return the shipped tower as a function of a picture."""

    def encode(image: Image.Image) -> features.TowerOutput:
        found = [tower.encode(view.pixels[None])[0] for view in views(image, config.rule)]
        cut = plan(*image.size, config.rule)
        return features.TowerOutput(found, cut.rows, cut.columns)

    return encode


def report(
    model: Path,
    assets: Path,
    run: Path,
    out: Path,
    sizes: features.Sizes,
    progress: Progress,
    log: Log = print_now,
    feature_codec: str = DEFAULT,
    backend: str = "torch",
    dtype: str = "float32",
) -> dict[str, Any]:
    """Measure accuracy on the numbers of pictures in `sizes`, write the report to `out` (JSON) and return it.

    `feature_codec` is the codec of the checkpoint that makes the packets; `backend` and `dtype` compute the tower.
    """
    checkpoint = Checkpoint.open(model, feature_codec=feature_codec)
    codec = Codec.load(checkpoint.codec_path)
    plain = (backend, dtype) == ("torch", "float32")
    run = run / (checkpoint.model_id if plain else f"{checkpoint.model_id}-{backend}-{dtype}")
    tower = open_tower(checkpoint, backend, dtype=dtype)
    features.compute_all(assets, run, shipped_encoder(tower, checkpoint.config), sizes, progress=progress)
    answerer, packer = answerer_of(checkpoint), Packer(load_tokenizer(checkpoint))
    ways: dict[str, Reduce] = {"uncompressed": merging()}
    ways |= {f"merged to {n}, uncompressed": merging(n, project=codec.components) for n in MERGED}
    finest, crop = codec.config.qualities - 1, codec.config.crop_limits[-1]
    ways |= {"packets": coded(codec, None, finest, crop)}
    ways |= {f"merged to {n}, packets": coded(codec, n, finest, crop) for n in MERGED}
    ways |= {f"preset {name}": coded_at(codec, index) for name, index in codec.config.presets.items()}
    found: dict[str, Any] = {
        "command": "tofc-lab evaluate"
        + (f" --feature-codec {feature_codec}" if feature_codec != DEFAULT else "")
        + ("" if plain else f" --backend {backend} --dtype {dtype}"),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "model_id": checkpoint.model_id,
        "codec_id": checkpoint.codec_id,
        "pictures": {f"{kind} {split}": count for (kind, split), count in sizes.items()},
        "results": {},
    }
    for (kind, split), count in sizes.items():
        pictures = features.load(run, kind, split, count)
        for way, reduce in ways.items():
            if kind != "world" and way.startswith("merged") and way != "merged to 12, packets":
                continue
            outcomes = score(answerer, packer, pictures, reduce, batch=5 if kind == "large" else 25)
            found["results"].setdefault(kind, {})[way] = _row(outcomes)
            log(f"{kind:6} {way:28} " + " ".join(f"{k} {v:.3f}" for k, v in accuracy(outcomes).items()))
    out.parent.mkdir(parents=True, exist_ok=True)
    json_text.write(out, found)
    return found


def _row(outcomes: list[Outcome]) -> dict[str, Any]:
    spread = intervals(outcomes)
    return {
        "bytes": round(mean_size(outcomes), 1),
        "questions": len(outcomes),
        "accuracy": {k: round(v, 4) for k, v in accuracy(outcomes).items()},
        "interval": {k: [round(low, 4), round(high, 4)] for k, (low, high) in spread.items()},
    }
