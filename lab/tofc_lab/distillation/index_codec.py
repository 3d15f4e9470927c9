"""The index codec of any checkpoint, from the features of pictures: neither the decoder nor answers are needed.

    pictures' features ─ transform behind the projector ─ components ─ codebooks, context model ─ the codec's weights

Promises that the same features, recipe and seed give the same codec, also after an interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tofc.codec.codec import Codec
from tofc.codec.index.weights import IndexWeights
from tofc.model.checkpoint import Checkpoint
from tofc.model.tensor_files import read_metadata
from tofc_lab.codec.index import transform
from tofc_lab.codec.index.export import export
from tofc_lab.codec.index.grids import Grids
from tofc_lab.codec.index.train import IndexRecipe, train
from tofc_lab.codec.index.transform import Transform
from tofc_lab.codec.places import Pool, View
from tofc_lab.distillation.pictures import StoredPicture
from tofc_lab.distillation.source import merged
from tofc_lab.progress import Log
from tofc_lab.resume import Settings

SAMPLE = 15_000  # features that the transform is computed from, at most
#: quality by preset: on nano 13, 7, 4 and 2 points of accuracy below uncompressed features (docs/decisions.md)
PRESETS = {"low": 2, "medium": 3, "high": 4, "max": 7}


def train_index(
    stored: Sequence[StoredPicture],
    checkpoint: Checkpoint,
    saved: Path,
    *,
    inputs: Settings,
    recipe: IndexRecipe,
    seed: int,
    log: Log,
) -> IndexWeights:
    """Train on the features of `stored`, resuming from the checkpoint `saved`, and return the codec's weights.

    Every quality is a rate, and four of them are presets; `inputs` identify the features.
    """
    fitted = transform.fit(_sample(stored, seed), projector(checkpoint), recipe.components)
    views = _components(stored, fitted, recipe.merged, seed)
    model, price = train(views, saved, inputs=inputs, recipe=recipe, seed=seed, log=log)
    finest, own = model.qualities - 1, own_codec(checkpoint)
    return export(
        model,
        fitted,
        price,
        {} if own is None else {side: table.astype(np.float16) for side, table in own.weights.grid_embedding.items()},
        checkpoint.config.hidden,
        rates=tuple((None, quality) for quality in range(model.qualities)),
        presets={name: min(quality, finest) for name, quality in PRESETS.items()},
        preset="high",
    )


def projector(checkpoint: Checkpoint) -> Tensor:
    """Return the projector's weight, float32 [H, D]."""
    return checkpoint.projector_tensors()["vit_large_projector.weight"].float()


def own_codec(checkpoint: Checkpoint) -> Codec | None:
    """Return the codec in the checkpoint if it names no model: both were trained together, with its grid embedding.

    A codec that names its model was trained after it, so its grid embedding does not affect the model's own answers.
    """
    tensors = checkpoint.codec_path / "codec.safetensors"
    if not tensors.exists() or "model_id" in read_metadata(tensors):
        return None
    return Codec.load(checkpoint.codec_path)


def _sample(stored: Sequence[StoredPicture], seed: int) -> Tensor:
    """Return features [T, D] of random pictures."""
    found, count = [], 0
    for index in np.random.default_rng([seed, 23]).permutation(len(stored)):
        found += stored[index].views()
        count += sum(side * side for side in stored[index].sides)
        if count >= SAMPLE:
            break
    return torch.from_numpy(np.concatenate(found)[:SAMPLE])


def _components(stored: Sequence[StoredPicture], fitted: Transform, share_merged: float, seed: int) -> list[Grids]:
    """Return the components of all views, with those of a share of the pictures merged."""
    project = fitted.in_numpy()
    rng = np.random.default_rng([seed, 37])
    components, views = list[Tensor](), list[View]()
    for one in stored:
        share = float(rng.uniform(0.15, 1.0)) if rng.random() < share_merged else 1.0
        shown = merged(one, share, project)
        components.append(fitted.project(torch.from_numpy(shown.features)))  # now: all features are gigabytes
        views += shown.views()
    return Grids.of(Pool.of(torch.cat(components), views), lambda y: y)
