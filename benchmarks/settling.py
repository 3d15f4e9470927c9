"""Whether settling loses bits when it chooses the whole steps of several batches at once (`ROUND` of codec/train.py).

    tofc-lab assets && tofc-lab nano pictures pictures --count 400
    python -m benchmarks.settling pictures        # five minutes on one core; prints JSON

Settles the context model of nano's codec `context` anew, from random weights, with one batch a choice and with more,
otherwise with the same steps, and counts bits on held-out pictures. Promises the same figures for the same pictures and
torch. Leaves launches to `benchmarks.launches`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tofc import json_text
from tofc.codec.context.weights import ContextWeights
from tofc.codec.files import load_weights
from tofc.model.checkpoint import Checkpoint
from tofc.model.feature_codecs import codec_folder
from tofc.model.shipped import NANO
from tofc.model.tower import Tower
from tofc_lab.codec.distributed import ProcessGroup
from tofc_lab.codec.entropy_model_trainer import EntropyModelTrainer
from tofc_lab.codec.model import CodecModel
from tofc_lab.codec.places import Pool
from tofc_lab.codec.train import CodecRecipe, new_model
from tofc_lab.distillation import pictures
from tofc_lab.distillation.source import merged

TOGETHER = (1, 8)
SEEDS = (0,)


def pools(folder: Path, features: Path) -> tuple[Pool, Pool]:
    """Return the features to train on, half of the pictures merged, and those of the held-out pictures."""
    checkpoint = Checkpoint.open(NANO)
    stored = pictures.encode_all(
        pictures.find(folder), checkpoint.config, lambda: Tower(checkpoint), features, ProcessGroup(),
        lambda items, total: items, print,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    found = []
    for some, share_merged in zip(pictures.divide(stored, 100), (0.5, 0.0), strict=True):
        shown = [merged(one, float(rng.uniform(0.15, 1)) if rng.random() < share_merged else 1.0) for one in some]
        joined = torch.from_numpy(np.concatenate([one.features for one in shown]))
        found.append(Pool.of(joined.half(), [view for one in shown for view in one.views()]))
    return found[0], found[1]


def settled(training: Pool, held_out: Pool, steps: int, together: int, seed: int) -> dict[str, Any]:
    """Settle, and return the bits a feature of each quality on the held-out pictures."""
    torch.manual_seed(seed)
    recipe = CodecRecipe()
    model: CodecModel = new_model(recipe, training.features.shape[1]).train()
    weights = load_weights(codec_folder(NANO, "context"))
    assert isinstance(weights, ContextWeights)
    model.continue_from(weights, training.features[:20_000].float(), recipe.bits)
    trainer = EntropyModelTrainer(model, training, seed)
    trainer.freeze()
    started = time.process_time()
    for first in range(0, steps, together):
        rates = [recipe.rate * min(1.0, 2 * (1 - done / steps)) for done in range(first, min(first + together, steps))]
        trainer.run(rates)
    seconds = time.process_time() - started
    features, places = held_out.all()
    model.eval()
    with torch.inference_mode():
        y = [model.quantise(features.float(), quality) for quality in range(model.qualities)]
        bits = [float(model.code(one, quality, places)[1].mean()) for quality, one in enumerate(y)]
    return {
        "batches a choice": together, "seed": seed, "bits a feature": [round(one, 3) for one in bits],
        "mean": round(float(np.mean(bits)), 3), "CPU ms a step": round(seconds / steps * 1e3, 1),
    }  # fmt: skip


def main() -> None:
    """Measure, and print a JSON object for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        training, held_out = pools(chosen.pictures, Path(folder))
    for seed in SEEDS:
        for together in TOGETHER:
            print(json_text.dumps(settled(training, held_out, chosen.steps, together, seed)), flush=True)


if __name__ == "__main__":
    main()
