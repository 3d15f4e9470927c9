"""The figures about a checkpoint: accuracy per family, merged and not, compressed and not.

Promises to use the weights as they ship (half precision in the file, float32 in the tower) and only
test pictures. A run that stops goes on with the pictures whose features are already there.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lab.evaluate import Outcome, accuracy, coded, intervals, mean_size, score
from lab.nano import features
from lab.nano.answerer import Reduce, merging
from lab.nano.packing import Packer
from lab.nano.unpack import answerer_of
from shared import json_text
from shared.codec.codec import Codec
from shared.model.checkpoint import Checkpoint
from shared.model.prompt import load_tokenizer
from shared.model.tower import Tower
from shared.model.views import plan, views

MERGED = (24, 16, 12, 8)


def encoder(tower: Tower) -> Callable[[Image.Image], features.Seen]:
    """What the shipped tower sees of a picture."""

    def encode(image: Image.Image) -> features.Seen:
        rule = tower.config.rule
        seen = views(image, rule)
        found = [tower.encode(view.pixels[None])[0] for view in seen]
        cut = plan(*image.size, rule)
        return features.Seen(found, cut.rows, cut.columns)

    return encode


def report(
    model: Path,
    assets: Path,
    run: Path,
    out: Path,
    sizes: features.Sizes,
    progress: Callable[[Iterable[int], int], Iterable[int]],
) -> dict[str, Any]:
    """Write ``out`` (JSON) and return it."""
    checkpoint = Checkpoint.open(model)
    codec = Codec.load(checkpoint.path)
    run = run / checkpoint.model_id
    encode = encoder(Tower(checkpoint))
    for (kind, split), count in sizes.items():
        features.compute(assets, run, encode, kind=kind, split=split, count=count, progress=progress)
    answerer, packer = answerer_of(checkpoint), Packer(load_tokenizer(checkpoint))
    ways: dict[str, Reduce] = {"uncompressed": merging()}
    ways |= {f"merged to {n}, uncompressed": merging(n, project=codec.components) for n in MERGED}
    finest = codec.config.qualities - 1
    ways |= {"packets": coded(codec, None, finest)}
    ways |= {f"merged to {n}, packets": coded(codec, n, finest) for n in MERGED}
    ways |= {f"preset {name}": coded(codec, *codec.config.rates[at]) for name, at in codec.config.presets.items()}
    found: dict[str, Any] = {
        "command": "tofc-lab evaluate",
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
            print(f"{kind:6} {way:28} " + " ".join(f"{k} {v:.3f}" for k, v in accuracy(outcomes).items()), flush=True)
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
