"""Training of nano's decoder, projector and grid embedding on cached features.

Promises that an interrupted run can be resumed, and a log with validation accuracy by family of questions. The tower
is frozen. In some batches features are merged to a random number or get noise, so that the decoder learns to read such
features.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tofc.json_text import dumps
from tofc_lab.codec.feature_noise import FeatureNoise, PcaNoise
from tofc_lab.nano import decoder_state
from tofc_lab.nano.answerer import Answerer, ask, config, merging, visual_input
from tofc_lab.nano.attention_supervision import supervise
from tofc_lab.nano.batches import Batches
from tofc_lab.nano.evaluate import accuracy, score
from tofc_lab.nano.features import CachedPicture
from tofc_lab.nano.packing import AttentionLabel, Batch, Packer
from tofc_lab.progress import Log, print_now, smooth, step_line
from tofc_lab.resume import NONE, Settings

#: weights of the families in the first steps: mostly those that need one object found; comparing two is learned later
EARLY_WEIGHTS = {
    "exist": 4.0,
    "count": 2.0,
    "what": 1.0,
    "side": 1.0,
    "rel": 0.5,
    "cmp": 0.3,
    "read": 0.4,
    "where": 3.0,
    "order": 1.0,
}
WEIGHTS = {
    "exist": 1.0,
    "count": 2.5,
    "what": 0.7,
    "side": 2.0,
    "rel": 4.0,
    "cmp": 0.8,
    "read": 1.0,
    "where": 2.0,
    "order": 4.0,
}


@dataclass(frozen=True, kw_only=True)
class DecoderRecipe:
    """Steps, learning rates and the mix of batches of the decoder's training."""

    steps: int = 2400
    early: int = 900  # first steps, with EARLY_WEIGHTS; `train` leaves them out if it starts from another decoder
    batch: int = 24  # pictures of a batch
    turns: int = 14  # questions about each picture
    rate: float = 2e-3  # learning rate
    projector: float = 0.5  # its learning rate as a share of `rate`: it multiplies long vectors
    grid: float = 4.0  # its learning rate as a share of `rate`: it must grow as fast as the projected features
    attention_weight: float = 0.2  # weight of the loss of `attention_supervision`
    decay: float = 0.4  # share of the steps, at the end, over which the learning rate falls to 0
    save: int = 250  # steps between checkpoints
    merged: float = 0.5  # share of batches with merged features
    noisy: float = 0.3  # share of batches with noise on the features
    large: float = 0.08  # share of batches with larger pictures
    easy: float = 0.10  # share of batches from easy-VQA
    conversation: float = 0.15  # share of batches whose questions attend to earlier ones, as in a conversation


class Shares(Protocol):
    """What `optimisers_of` needs of a recipe."""

    @property
    def projector(self) -> float: ...

    @property
    def grid(self) -> float: ...


class DecoderBatches(Batches[tuple[str, Batch]]):
    """Endless batches with their kind, from step `first` on; batch `step` depends only on `(seed, step)`."""

    def __init__(
        self,
        pictures: dict[str, Sequence[CachedPicture]],
        noise: FeatureNoise,
        packer: Packer,
        recipe: DecoderRecipe,
        seed: int,
        first: int,
    ) -> None:
        self.pictures, self.noise, self.packer, self.recipe = pictures, noise, packer, recipe
        self.seed, self.first = seed, first

    def draw(self, step: int) -> tuple[str, Batch]:
        """Return the kind of pictures ("world", "large", "easy") and the batch."""
        recipe, rng = self.recipe, np.random.default_rng([self.seed, 17, step])
        draw, kind, size = rng.random(), "world", recipe.batch
        if draw < recipe.large:
            kind, size = "large", max(1, recipe.batch // 4)
        elif draw < recipe.large + recipe.easy:
            kind = "easy"
        source = self.pictures[kind]
        share = float(rng.uniform(0.12, 1.0)) if rng.random() < recipe.merged else 1.0
        chosen = [source[i] for i in rng.integers(len(source), size=size)]
        shown = [visual_input(one, merging(share=share)) for one in chosen]
        if rng.random() < recipe.noisy:
            shown = [replace(one, features=self.noise.apply(rng, one.features, one.views)) for one in shown]
        weights = EARLY_WEIGHTS if step < recipe.early else WEIGHTS
        asked = [supervise(one, ask(rng, one, recipe.turns, weights)) for one in chosen]
        return kind, self.packer.pack(shown, asked, independent=bool(rng.random() >= recipe.conversation))


def optimisers_of(answerer: Answerer, recipe: Shares) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices and AdamW for the rest; a group's `scale` multiplies the learning rate."""
    layers = [p for n, p in answerer.named_parameters() if p.ndim == 2 and ".layers." in n]
    apart = {id(p) for p in [*layers, answerer.projector.weight, answerer.grid.weight]}
    rest = [p for p in answerer.parameters() if id(p) not in apart]
    return [
        torch.optim.AdamW(
            [{"params": rest, "scale": 1.0}, {"params": [answerer.grid.weight], "scale": recipe.grid}],
            betas=(0.9, 0.98),
            weight_decay=0.01,
        ),
        torch.optim.Muon(
            [{"params": layers, "scale": 1.0}, {"params": [answerer.projector.weight], "scale": recipe.projector}],
            weight_decay=0.01,
            adjust_lr_fn="match_rms_adamw",
        ),
    ]


def train(
    world: Sequence[CachedPicture],
    large: Sequence[CachedPicture],
    easy: Sequence[CachedPicture],
    validation: Sequence[CachedPicture],
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    *,
    inputs: Settings = NONE,
    start: Path | None = None,
    noise: FeatureNoise | None = None,
    recipe: DecoderRecipe | None = None,
    seed: int = 0,
    autocast: bool = True,
    workers: int = 1,
    log: Log = print_now,
) -> Answerer:
    """Run the recipe, resuming from `out/decoder.ckpt`, and write `out/decoder.pt`.

    Args:
        inputs: what identifies features, `start` and `noise`; a checkpoint of other inputs or settings is refused.
        start: the `decoder.pt` of another run to start from, for instance one on an earlier tower's features.
        noise: noise on half of the batches; None: `PcaNoise` on the share `noisy` of the recipe.
    """
    recipe = recipe or DecoderRecipe()
    settings = decoder_state.settings_of(inputs, recipe, seed)
    if noise is not None:  # the codec's: the decoder learns to read features from packets
        recipe = replace(recipe, noisy=0.5, merged=0.6)
    torch.manual_seed(seed)
    packer = Packer(tokenizer)
    answerer = Answerer(world[0].features.shape[1], config(tokenizer))
    sample = np.concatenate([one.features for one in world[:200]]).astype(np.float32)
    answerer.start_from(torch.from_numpy(sample))
    if start is not None:
        answerer.load_state_dict(torch.load(start, weights_only=True))
        recipe = replace(recipe, early=0)
    optimisers = optimisers_of(answerer, recipe)
    saved = out / "decoder.ckpt"
    step, running = decoder_state.restore(saved, settings, answerer, optimisers)
    questions = DecoderBatches(
        {"world": world, "large": large, "easy": easy}, noise or PcaNoise.fit(sample), packer, recipe, seed, step
    )
    batches = questions.ahead(workers)
    started, first = time.monotonic(), step
    while step < recipe.steps:
        kind, batch = next(batches)
        rate = recipe.rate * min(1.0, (step + 1) / 100, (recipe.steps - step) / (recipe.decay * recipe.steps))
        decoder_state.set_rate(optimisers, rate)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits, attention = answerer.forward_with_attention(batch)
        losses = F.cross_entropy(logits.float(), batch.targets[batch.targets >= 0], reduction="none")
        attention_loss = -(attention + 1e-4).log().mean() if len(attention) else losses.new_zeros(())
        (losses.mean() + recipe.attention_weight * attention_loss).backward()
        decoder_state.update(answerer, optimisers)
        step += 1
        newest = {kind: losses.mean().item()}
        smooth(running, newest | _attention_elsewhere(batch, attention) | losses_by_family(batch, losses))
        if step % 25 == 0:
            speed = (step - first) / (time.monotonic() - started)
            log(step_line(step, recipe.steps, speed, dict(sorted(running.items()))))
        if step % recipe.save == 0 or step == recipe.steps:
            scores = {n: accuracy(score(answerer, packer, validation, merging(int(n)))) for n in ("36", "12")}
            for n, by_family in scores.items():
                log(f"  validation n={n} " + " ".join(f"{k} {v:.3f}" for k, v in by_family.items()))
            with (out / "decoder.jsonl").open("a", encoding="utf-8") as file:
                file.write(dumps({"step": step, **running, "validation": scores}) + "\n")
            decoder_state.save(saved, settings, answerer, optimisers, step=step, running=running)
    torch.save(answerer.state_dict(), out / "decoder.pt")
    return answerer


def _attention_elsewhere(batch: Batch, attention: Tensor) -> dict[str, float]:
    """Return the mean share of attention on wrong tokens, for each kind of label."""
    kinds = batch.supervised[:, 0]
    shares = {kind.name.lower(): attention[kinds == kind] for kind in AttentionLabel}
    return {f"{name} astray": 1 - given.mean().item() for name, given in shares.items() if len(given)}


def losses_by_family(batch: Batch, losses: Tensor) -> dict[str, float]:
    """Return the mean loss of a question in each family, from the loss of every answer token."""
    sums = torch.zeros(len(batch.asked)).index_add_(0, batch.owner[batch.targets >= 0], losses.detach())
    found: dict[str, list[float]] = {}
    for one, value in zip(batch.asked, sums.tolist(), strict=True):
        found.setdefault(f"{one.family} loss", []).append(value)
    return {family: float(np.mean(values)) for family, values in found.items()}
