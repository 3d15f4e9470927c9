"""Export of the photo model's trained parts to a checkpoint, and its codec.

Promises that the checkpoint opens on both sides and answers as the parts did, up to half precision, and that nothing of
the training's pictures is in it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from tofc_lab import resume
from tofc_lab.checkpoint.pretrained_trunk import Pretrained
from tofc_lab.codec.index.export import export as export_index
from tofc_lab.codec.index.grids import Grids
from tofc_lab.codec.index.train import IndexRecipe, settings_of
from tofc_lab.codec.index.train import train as train_codec
from tofc_lab.nano import export
from tofc_lab.nano.answerer import Answerer
from tofc_lab.nano.source import pool
from tofc_lab.photo import asked_scenes, tower, transform
from tofc_lab.photo.decoder import config
from tofc_lab.progress import Log, print_now

MAX_SIDE = 336  # px: a picture is one view, and crops only where it is 1.5 times as long as wide
SAMPLED = 500  # scenes from which the codec's transform is computed
PRESETS = {"low": 1, "medium": 3, "high": 6}
#: first a codebook for what a cell shows, then two for the rest of it
CODEC = IndexRecipe(
    components=transform.CONCEPT + transform.REST,
    codewords=(4096, 1024, 512),
    weights=(0.003, 0.01, 0.01),
    spans=(
        (0, transform.CONCEPT),
        *[(transform.CONCEPT, transform.CONCEPT + transform.REST)] * 2,
    ),
    prices=(1.0, 0.6, 0.4, 0.25, 0.16, 0.1, 0.06, 0.03),
    vectors=60_000,
    fitting=4,
    rounds=3,
    moving=0,
    steps=700,
)


def load(run: Path) -> tuple[Answerer, PreTrainedTokenizerFast]:
    """Load the trained answerer of a run, and its tokenizer."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(run / "tokenizer")
    answerer = Answerer(tower.VISION["output_width"], config(tokenizer))
    answerer.load_state_dict(torch.load(run / "decoder.pt", weights_only=True))
    return answerer.eval(), tokenizer


def export_run(run: Path, out: Path) -> None:
    """Write tower, projector, decoder and tokenizer of a run to `out`. Leaves the codec to `write_codec`."""
    answerer, _ = load(run)
    reader = tower.load(run).state_dict()
    state = {f"trunk.{name}": tensor for name, tensor in Pretrained.load().trunk.items()}
    state |= {name: tensor for name, tensor in reader.items() if name.startswith(("detail", "adapter.", "concepts."))}
    export.export(out, tower.VISION, state, answerer, run / "tokenizer", max_side=MAX_SIDE)


def write_codec(run: Path, out: Path, recipe: IndexRecipe, seed: int, log: Log = print_now) -> None:
    """Train the index codec on the scenes of `run`, resuming from its `index.ckpt`, and write it to `out`.

    Distances are those between what the tower's readers read, so training needs no decoder.
    """
    saved, inputs = run / "index.ckpt", {"tower": resume.fingerprint(run / "tower.pt")}
    resume.check(saved, settings_of(inputs, recipe, seed))
    scenes = asked_scenes.load(asked_scenes.folder(run), "train")
    answerer, _ = load(run)
    sample = torch.from_numpy(np.concatenate([one.features for one in scenes[:SAMPLED]]).astype(np.float32))
    fitted = transform.fit(sample, tower.load(run))
    merged = pool(scenes, fitted.in_numpy(), seed, recipe.merged)
    model, price = train_codec(
        Grids.of(merged, fitted.project), saved, inputs=inputs, recipe=recipe, seed=seed, log=log
    )
    export_index(
        model,
        fitted,
        price,
        answerer.grid_embedding(),
        answerer.grid.embedding_dim,
        rates=tuple((None, quality) for quality in range(model.qualities)),
        presets={name: min(quality, model.qualities - 1) for name, quality in PRESETS.items()},
        preset="high",
        crop_features=4,
    ).save(out)
