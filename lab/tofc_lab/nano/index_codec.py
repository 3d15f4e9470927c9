"""Nano's index codec: trained on a run's features and exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tofc_lab import resume
from tofc_lab.codec.index import transform
from tofc_lab.codec.index.export import export
from tofc_lab.codec.index.grids import Grids
from tofc_lab.codec.index.train import IndexRecipe, settings_of, train
from tofc_lab.nano import features
from tofc_lab.nano.answerer import inputs_of, load
from tofc_lab.nano.source import pool
from tofc_lab.progress import Log, print_now

EASY = 2300  # pictures of easy-VQA: the last ones of its training split are left to try the codec on
SAMPLED = (800, 80, 20)  # pictures of world, easy-VQA and large, from which the transform is computed
#: quality by preset, among the rates (all features, quality 1 and up): on validation pictures (docs/decisions.md)
PRESETS = {"low": 1, "medium": 2, "high": 3, "max": 6}
#: features of a crop at each rate, on validation pictures (docs/decisions.md); None: not merged
CROP_FEATURES = (None, None, 4, 4, 4, 4, 4)


def train_index(run: Path, out: Path, recipe: IndexRecipe, seed: int, log: Log = print_now) -> None:
    """Train on the features of `run`, resuming from its `index.ckpt`, and write the codec to `out`."""
    saved, inputs = run / "index.ckpt", inputs_of(run)
    resume.check(saved, settings_of(inputs, recipe, seed))
    pictures = features.load_training(run)
    world, large, easy = pictures.world, pictures.large, pictures.easy[:EASY]
    answerer, _ = load(run, world[0].features.shape[1])
    sampled = [one.features for kind, count in zip((world, easy, large), SAMPLED, strict=True) for one in kind[:count]]
    sample = torch.from_numpy(np.concatenate(sampled).astype(np.float32))
    fitted = transform.fit(sample, answerer.projector.weight.detach(), recipe.components)
    merged = pool([*world, *large, *easy], fitted.in_numpy(), seed, recipe.merged)
    views = Grids.of(merged, fitted.project)
    model, price = train(views, saved, inputs=inputs, recipe=recipe, seed=seed, log=log)
    export(
        model,
        fitted,
        price,
        answerer.grid_embedding(),
        answerer.grid.embedding_dim,
        rates=tuple((None, quality) for quality in range(1, model.qualities)),
        presets=PRESETS,
        preset="high",
        crop_features=CROP_FEATURES,
    ).save(out)
