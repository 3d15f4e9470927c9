"""Training nano's decoder, projector and grid embedding on cached features.

Promises a resumable run whose log has validation accuracy per family. The tower stays frozen;
features are merged to a random number, and coarsened, so that the decoder knows such ones.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from lab import resume
from lab.evaluate import accuracy, score
from lab.nano.answerer import Answerer, ask, config, merging, picture
from lab.nano.batches import Batches
from lab.nano.features import Cached
from lab.nano.looking import named
from lab.nano.packing import Batch, Look, Packer
from lab.nano.rough import Coarsen, Rough
from shared.json_text import dumps

#: at first mostly what needs a name found among the features; comparing two of them is learned after that
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
class Recipe:
    """How long and how fast; ``merged`` and ``rough`` are the shares of batches whose features are."""

    steps: int = 2400
    early: int = 900  # steps with EARLY_WEIGHTS; none when it goes on from a decoder that finds names
    batch: int = 24
    turns: int = 14
    rate: float = 2e-3
    projector: float = 0.5  # of the rate: it multiplies long vectors
    grid: float = 4.0  # of the rate: it must keep up with the projected features as they grow
    look: float = 0.2  # weight of the loss of names that look elsewhere than at what they name
    decay: float = 0.4
    save: int = 250  # steps between checkpoints
    merged: float = 0.5
    rough: float = 0.3
    large: float = 0.08
    easy: float = 0.10
    conversation: float = 0.15


class Questions(Batches[tuple[str, Batch]]):
    """Endless batches and their kind from step ``first`` on; batch ``step`` depends on ``(seed, step)`` alone."""

    def __init__(
        self,
        pictures: dict[str, Sequence[Cached]],
        rough: Coarsen,
        packer: Packer,
        recipe: Recipe,
        seed: int,
        first: int,
    ) -> None:
        self.pictures, self.rough, self.packer, self.recipe = pictures, rough, packer, recipe
        self.seed, self.first = seed, first

    def draw(self, step: int) -> tuple[str, Batch]:
        """The kind of its pictures ("world", "large", "easy") and the batch."""
        recipe, rng = self.recipe, np.random.default_rng([self.seed, 17, step])
        draw, kind, size = rng.random(), "world", recipe.batch
        if draw < recipe.large:
            kind, size = "large", max(1, recipe.batch // 4)
        elif draw < recipe.large + recipe.easy:
            kind = "easy"
        source = self.pictures[kind]
        share = float(rng.uniform(0.12, 1.0)) if rng.random() < recipe.merged else 1.0
        chosen = [source[i] for i in rng.integers(len(source), size=size)]
        shown = [picture(one, merging(share=share)) for one in chosen]
        if rng.random() < recipe.rough:
            shown = [replace(one, features=self.rough.draw(rng, one.features, one.views)) for one in shown]
        weights = EARLY_WEIGHTS if step < recipe.early else WEIGHTS
        asked = [named(one, ask(rng, one, recipe.turns, weights)) for one in chosen]
        return kind, self.packer.pack(shown, asked, independent=bool(rng.random() >= recipe.conversation))


def optimisers_of(answerer: Answerer, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for the rest; each group's ``scale`` is its share of the rate."""
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
    world: Sequence[Cached],
    large: Sequence[Cached],
    easy: Sequence[Cached],
    validation: Sequence[Cached],
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    *,
    basis: str = "",
    start: Path | None = None,
    coarsen: Coarsen | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    autocast: bool = True,
    workers: int = 1,
    log: Any = print,
) -> Answerer:
    """Run the recipe, resuming from ``out/decoder.ckpt``; ends with ``out/decoder.pt``.

    Args:
        basis: names what the features are of; a checkpoint of another basis is refused.
        coarsen: makes features coarse, for half of the batches; None: :class:`Rough`, for the recipe's share.
        start: the ``decoder.pt`` of another run to go on from, for instance on an earlier tower's features.
    """
    recipe = recipe or Recipe()
    if coarsen is not None:  # the last steps: what it will be asked about is packets
        recipe = replace(recipe, rough=0.5, merged=0.6)
    torch.manual_seed(seed)
    packer = Packer(tokenizer)
    answerer = Answerer(world[0].features.shape[1], config(tokenizer))
    some = np.concatenate([one.features for one in world[:200]]).astype(np.float32)
    answerer.start_from(torch.from_numpy(some))
    if start is not None:
        answerer.load_state_dict(torch.load(start, weights_only=True))
        recipe = replace(recipe, early=0)
    optimisers = optimisers_of(answerer, recipe)
    saved, step, running = out / "decoder.ckpt", 0, dict[str, float]()
    if (state := resume.load(saved, basis)) is not None:
        answerer.load_state_dict(state["answerer"])
        for optimiser, values in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        step, running = state["step"], state["running"]
    questions = Questions(
        {"world": world, "large": large, "easy": easy}, coarsen or Rough(some), packer, recipe, seed, step
    )
    batches = questions.ahead(workers)
    began, first = time.monotonic(), step
    while step < recipe.steps:
        kind, batch = next(batches)
        rate = recipe.rate * min(1.0, (step + 1) / 100, (recipe.steps - step) / (recipe.decay * recipe.steps))
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group["scale"]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits, looks = answerer.forward_looking(batch)
        losses = F.cross_entropy(logits.float(), batch.targets[batch.targets >= 0], reduction="none")
        astray = -(looks + 1e-4).log().mean() if len(looks) else losses.new_zeros(())
        (losses.mean() + recipe.look * astray).backward()
        nn.utils.clip_grad_norm_(answerer.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        step += 1
        for name, value in {kind: losses.mean().item(), **_astray(batch, looks), **_by_family(batch, losses)}.items():
            running[name] = 0.97 * running.get(name, value) + 0.03 * value
        if step % 25 == 0:
            speed = (step - first) / (time.monotonic() - began)
            shown = " ".join(f"{k} {v:.3f}" for k, v in sorted(running.items()))
            log(f"{step}/{recipe.steps} {speed:.2f} steps/s {shown}", flush=True)
        if step % recipe.save == 0 or step == recipe.steps:
            scores = {n: accuracy(score(answerer, packer, validation, merging(int(n)))) for n in ("36", "12")}
            for n, values in scores.items():
                log(f"  validation n={n} " + " ".join(f"{k} {v:.3f}" for k, v in values.items()), flush=True)
            with (out / "decoder.jsonl").open("a", encoding="utf-8") as file:
                file.write(dumps({"step": step, **running, "validation": scores}) + "\n")
            state = {
                "answerer": answerer.state_dict(),
                "optimisers": [o.state_dict() for o in optimisers],
                "step": step,
                "running": running,
            }
            resume.save(saved, state, basis)
    torch.save(answerer.state_dict(), out / "decoder.pt")
    return answerer


def _astray(batch: Batch, looks: Tensor) -> dict[str, float]:
    """Mean share of its attention that each kind of lookup gives elsewhere."""
    kinds = batch.lookups[:, 0]
    shares = {look.name.lower(): looks[kinds == look] for look in Look}
    return {f"{name} astray": 1 - given.mean().item() for name, given in shares.items() if len(given)}


def _by_family(batch: Batch, losses: Tensor) -> dict[str, float]:
    """Mean loss of a question in each family, from the loss of every answer token."""
    sums = torch.zeros(len(batch.asked)).index_add_(0, batch.owner[batch.targets >= 0], losses.detach())
    found: dict[str, list[float]] = {}
    for one, value in zip(batch.asked, sums.tolist(), strict=True):
        found.setdefault(f"{one.family} loss", []).append(value)
    return {family: float(np.mean(values)) for family, values in found.items()}
