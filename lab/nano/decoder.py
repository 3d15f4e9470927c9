"""Training nano's decoder, projector and grid embedding on cached features.

Promises a resumable run whose log has validation accuracy per family. The tower stays frozen;
features are merged to a random number so that the decoder knows merged ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerFast

from lab.evaluate import accuracy, score
from lab.nano.answerer import Answerer, ask, config, merging, picture
from lab.nano.features import Cached
from lab.nano.packing import Packer

#: at first mostly what needs a name found among the features; comparing two of them is learned after that
EARLY_WEIGHTS = {
    "exist": 4.0,
    "count": 3.0,
    "what": 1.0,
    "side": 1.0,
    "rel": 0.3,
    "cmp": 0.3,
    "read": 0.4,
    "where": 1.0,
}
WEIGHTS = {"exist": 1.5, "count": 2.0, "what": 0.7, "side": 2.5, "rel": 3.0, "cmp": 1.0, "read": 0.7, "where": 3.0}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast; ``merged`` is the share of batches whose features are merged."""

    steps: int = 2250
    place: int = 1500  # the step at which the projector's scale has settled and positions are put in
    early: int = 900  # steps with EARLY_WEIGHTS
    batch: int = 24
    turns: int = 14
    rate: float = 2e-3
    decay: float = 0.33
    merged: float = 0.5
    large: float = 0.08
    easy: float = 0.10
    conversation: float = 0.15


def train(
    world: Sequence[Cached],
    large: Sequence[Cached],
    easy: Sequence[Cached],
    validation: Sequence[Cached],
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    autocast: bool = True,
    log: Any = print,
) -> Answerer:
    """Run the recipe, resuming from ``out/decoder.ckpt``; ends with ``out/decoder.pt``."""
    recipe = recipe or Recipe()
    torch.manual_seed(seed)
    packer = Packer(tokenizer)
    answerer = Answerer(world[0].features.shape[1], config(tokenizer))
    spread = float(np.std(world[0].features.astype(np.float32)))
    nn.init.normal_(answerer.projector.weight, std=0.02 / spread)
    matrices = [p for n, p in answerer.named_parameters() if p.ndim == 2 and ".layers." in n]
    in_matrices = {id(p) for p in matrices}
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [p for p in answerer.parameters() if id(p) not in in_matrices], betas=(0.9, 0.98), weight_decay=0.01
        ),
        torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]
    saved, step = out / "decoder.ckpt", 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        answerer.load_state_dict(state["answerer"])
        for optimiser, values in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        step = state["step"]
    running: dict[str, float] = {}
    began, first = time.monotonic(), step
    while step < recipe.steps:
        if step == recipe.place:
            some = np.concatenate([one.features for one in world[:200]]).astype(np.float32)
            answerer.place(torch.from_numpy(some))
        rng = np.random.default_rng([seed, 17, step])
        rate = recipe.rate * min(1.0, (step + 1) / 100, (recipe.steps - step) / (recipe.decay * recipe.steps))
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        kind, size = rng.random(), recipe.batch
        source: Sequence[Cached] = world
        if kind < recipe.large and large:
            source, size = large, max(1, recipe.batch // 4)
        elif kind < recipe.large + recipe.easy and easy:
            source = easy
        share = float(rng.uniform(0.12, 1.0)) if rng.random() < recipe.merged else 1.0
        chosen = [source[i] for i in rng.integers(len(source), size=size)]
        shown = [picture(one, merging(share=share)) for one in chosen]
        asked = [ask(rng, one, recipe.turns, EARLY_WEIGHTS if step < recipe.early else WEIGHTS) for one in chosen]
        batch = packer.pack(shown, asked, independent=bool(rng.random() >= recipe.conversation))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = answerer(batch)
        loss = F.cross_entropy(logits.float(), batch.targets[batch.targets >= 0])
        loss.backward()
        nn.utils.clip_grad_norm_(answerer.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        step += 1
        name = "easy" if source is easy else "large" if source is large else "world"
        running[name] = 0.97 * running.get(name, loss.item()) + 0.03 * loss.item()
        if step % 25 == 0:
            speed = (step - first) / (time.monotonic() - began)
            log(
                f"{step}/{recipe.steps} {speed:.2f} steps/s " + " ".join(f"{k} {v:.3f}" for k, v in running.items()),
                flush=True,
            )
        if step % 250 == 0 or step == recipe.steps:
            scores = {n: accuracy(score(answerer, packer, validation, merging(int(n)))) for n in ("36", "12")}
            for n, values in scores.items():
                log(f"  validation n={n} " + " ".join(f"{k} {v:.3f}" for k, v in values.items()), flush=True)
            with (out / "decoder.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, **running, "validation": scores}) + "\n")
            state = {
                "answerer": answerer.state_dict(),
                "optimisers": [o.state_dict() for o in optimisers],
                "step": step,
            }
            torch.save(state, saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)
    torch.save(answerer.state_dict(), out / "decoder.pt")
    return answerer
