"""A first codec of a checkpoint in minutes: an index codec from a few hundred pictures, with the vision tower alone.

    pictures ─ tower ─ features on disk ─ transform, codebooks, context model ─ codec files
                                └ held out ─ bytes and errors of each quality ─ report

Promises that settings which do not fit the run's folder are an error before the tower is loaded, and that an
interrupted run is resumed with the same result. What answers lose is not known here: `judge` measures that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date

import numpy as np
import torch

from tofc import json_text
from tofc.codec.codec import Codec
from tofc.codec.index.config import IndexConfig
from tofc.errors import UsageError
from tofc.model.checkpoint import Checkpoint
from tofc.model.tower import Tower
from tofc_lab import resume
from tofc_lab.codec.distributed import ProcessGroup
from tofc_lab.codec.index.train import IndexRecipe, settings_of
from tofc_lab.distillation import pictures
from tofc_lab.distillation.amount import Amount, described
from tofc_lab.distillation.experiment import Job, open_checkpoint
from tofc_lab.distillation.index_codec import PRESETS, projector, train_index
from tofc_lab.distillation.pictures import StoredPicture
from tofc_lab.progress import Log, NamedProgress

CHECKPOINT = "quick.ckpt"
PICTURES = 600  # to train on, at most
MEASURED = 40  # held-out pictures, at most


@dataclass(frozen=True, kw_only=True)
class QuickCost:
    """What one quality costs on the held-out pictures."""

    features: int | None  # of a view at most; None: not merged
    quality: int
    bytes: float  # of a view's packet, on average
    error: float  # squared error behind the projector, relative to the features' variance there


def train_quick(job: Job, most: int, progress: NamedProgress, log: Log) -> None:
    """Train on up to `most` pictures, measure on held-out ones, and write codec and report.json to `job.out`.

    The pictures that `judge` holds out are not trained on. Raises `UsageError` and its kinds for faults of model, data
    or settings, and `ResourceError`.
    """
    if ProcessGroup.join().size > 1:
        raise UsageError("--quick trains in one process; start it without torchrun and accelerate")
    checkpoint = open_checkpoint(job.model)
    found = pictures.find(job.data)
    ordered = sorted(found)
    kept = pictures.held_out(len(ordered), 2 * job.most_held_out)
    held_out, training = ordered[:kept][:MEASURED], ordered[kept:][:most]
    amount = Amount.of([found[digest] for digest in training], checkpoint.config)
    recipe = amount.index_recipe(job.index or IndexRecipe(), job.follow, quick=True)
    log(f"{amount}: {described(recipe)}")
    log("computing the model's id")
    model_id = checkpoint.model_id
    inputs = {
        "model": model_id,
        "--dtype": job.dtype,
        "pictures": len(training),
        "the pictures' id": hashlib.sha256("".join(training).encode()).hexdigest()[:12],
    }
    job.run.mkdir(parents=True, exist_ok=True)
    resume.check(job.run / CHECKPOINT, settings_of(inputs, recipe, job.seed))
    job.out.mkdir(parents=True, exist_ok=True)
    stored = pictures.encode_all(
        {digest: found[digest] for digest in [*held_out, *training]},
        checkpoint.config,
        lambda: Tower(checkpoint, getattr(torch, job.dtype), job.device),
        job.run / "features" / f"{model_id}-{job.dtype}",
        ProcessGroup(),
        lambda items, total: progress(items, total, "features"),
        log,
    )
    measured = [one for one in stored if one.digest in set(held_out)]
    chosen = [one for one in stored if one not in measured]
    if not chosen or not measured:
        raise UsageError(
            f"{len(chosen)} pictures to train on and {len(measured)} to measure could be read of {job.data}; at least "
            "1 of each is needed, so name a folder with more pictures"
        )
    weights = train_index(
        chosen, checkpoint, job.run / CHECKPOINT, inputs=inputs, recipe=recipe, seed=job.seed, log=log
    )
    costs = measure(Codec(weights), measured, checkpoint)
    config = with_rates(weights.config, costs)
    replace(weights, config=config).save(job.out, model_id)
    report = {
        "model_id": model_id,
        "date": date.today().isoformat(),
        "seed": job.seed,
        "settings": settings_of(inputs, recipe, job.seed),
        "pictures": {"training": len(chosen), "held out": len(measured)},
        "codewords": config.codewords,
        "qualities": [asdict(one) for one in costs],
    }
    json_text.write(job.out / "report.json", report)
    names = {config.rates[index][1]: name for name, index in config.presets.items()}
    log(f"{len(measured)} held-out pictures:")
    for one in costs:
        log(
            f"{names.get(one.quality, ''):7} quality {one.quality}  {one.bytes:6.1f} B a view  "
            f"relative squared error {one.error:.3f}"
        )
    log(f"{job.out}: codec.json, codec.safetensors, report.json. Next: tofc-lab split {job.model} --codec {job.out}")


@torch.no_grad()
def measure(codec: Codec, stored: Sequence[StoredPicture], checkpoint: Checkpoint) -> list[QuickCost]:
    """Return what each quality costs, with real packets of unmerged views."""
    weight = projector(checkpoint)
    views = [view for one in stored for view in one.views()]
    mean = torch.from_numpy(np.concatenate(views).mean(0))
    power = sum(float(((torch.from_numpy(view) - mean) @ weight.T).square().sum()) for view in views)
    found = []
    for quality in range(codec.config.qualities):
        size = error = 0.0
        for view in views:
            packet = codec.encode(view, len(view), quality)
            missed = torch.from_numpy(codec.decode(packet).features - view)
            size, error = size + len(packet), error + float((missed @ weight.T).square().sum())
        found.append(QuickCost(features=None, quality=quality, bytes=round(size / len(views), 1), error=error / power))
    return found


def with_rates(config: IndexConfig, costs: Sequence[QuickCost]) -> IndexConfig:
    """Return the configuration with each quality that costs more bytes than those before it as a rate, and presets."""
    kept = [one for i, one in enumerate(costs) if all(one.bytes > before.bytes for before in costs[:i])]
    presets = {
        name: next((i for i, one in enumerate(kept) if one.quality >= quality), len(kept) - 1)
        for name, quality in PRESETS.items()
    }
    rates = tuple((one.features, one.quality) for one in kept)
    return replace(config, rates=rates, presets=presets, preset="high")
