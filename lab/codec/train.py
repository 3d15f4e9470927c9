"""Training the codec on cached features through the frozen decoder: D + λR.

D is the divergence of the answers from those the uncompressed features give (no labels needed), R the
coded bits. The transform follows both; the entropy model, which only R depends on, follows the transform with
many cheap steps that need no decoder. Promises a resumable run; leaves the tables to ``export``.
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
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from lab import resume
from lab.codec.follow import Follower, pool
from lab.codec.model import CodecModel
from lab.codec.sensitivity import root, sensitivity
from lab.nano.answerer import Answerer, ask, merging, picture
from lab.nano.batches import Batches
from lab.nano.features import Cached
from lab.nano.packing import Batch, Packer
from lab.nano.rough import Rough
from shared.codec.weights import CodecWeights


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """``rate_weight`` is where λ begins: nats of divergence an answer token may cost for one bit a feature.

    λ is then steered until unmerged pictures cost the finest quality's ``bits`` a feature: the byte budget is the
    given, its price in answers the outcome. The other qualities share the transform with longer steps; trained at
    all of them at once, it served none (docs/decisions.md).
    """

    components: int = 64
    hyper: int = 3
    hidden: int = 48
    warm: int = 200  # steps of squared error as the sensitivity weighs it, which need no decoder
    steps: int = 1200
    follow: int = 4  # steps of the entropy model for one of the transform
    settle: int = 12_000  # steps of the entropy model at the end
    save: int = 100  # steps between checkpoints
    batch: int = 24
    turns: int = 8
    rate: float = 2e-3
    entropy: float = 0.75  # of the rate
    measured: int = 40  # batches that the sensitivity is measured on
    plain: float = 0.1  # of the start: what any direction that passes the projector is worth beside the sensitivity
    rate_weight: float = 4e-3
    transform: float = 0.2  # of the rate
    bits: tuple[float, ...] = (8.0, 10.0, 12.5, 15.5, 19.0, 23.5, 29.0, 36.0)  # of the qualities, the coarsest first
    merged: float = 0.4
    easy: float = 0.12
    large: float = 0.06


class Questions(Batches[tuple[Batch, bool]]):
    """Endless batches and whether they are unmerged 336 px pictures, from step ``first`` on."""

    def __init__(
        self, pictures: dict[str, Sequence[Cached]], packer: Packer, recipe: Recipe, seed: int, first: int
    ) -> None:
        self.pictures, self.packer, self.recipe, self.seed, self.first = pictures, packer, recipe, seed, first

    def draw(self, step: int) -> tuple[Batch, bool]:
        """Batch ``step``, which depends on ``(seed, step)`` alone."""
        recipe, rng = self.recipe, np.random.default_rng([self.seed, 29, step])
        draw, kind, size = rng.random(), "world", recipe.batch
        if draw < recipe.easy:
            kind = "easy"
        elif draw < recipe.easy + recipe.large:
            kind, size = "large", max(1, recipe.batch // 4)
        share = float(rng.uniform(0.15, 1.0)) if rng.random() < recipe.merged else 1.0
        chosen = [self.pictures[kind][i] for i in rng.integers(len(self.pictures[kind]), size=size)]
        shown = [picture(one, merging(share=share)) for one in chosen]
        asked = [ask(rng, one, recipe.turns) for one in chosen]
        return self.packer.pack(shown, asked, independent=True), kind == "world" and share == 1.0


def train(
    answerer: Answerer,
    tokenizer: PreTrainedTokenizerFast,
    world: Sequence[Cached],
    large: Sequence[Cached],
    easy: Sequence[Cached],
    out: Path,
    *,
    basis: str = "",
    start: CodecWeights | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    autocast: bool = True,
    log: Any = print,
) -> CodecModel:
    """Run the recipe, resuming from ``out/codec.ckpt``; ends with ``out/codec.pt``.

    Args:
        basis: names the decoder; a checkpoint of another basis is refused.
        start: a codec whose transform to go on from; None begins where answers are sensitive.
    """
    recipe = recipe or Recipe()
    torch.manual_seed(seed)
    packer = Packer(tokenizer)
    answerer.requires_grad_(False).eval()
    model = CodecModel(
        dim=world[0].features.shape[1],
        components=recipe.components,
        hyper=recipe.hyper,
        hidden=recipe.hidden,
        qualities=len(recipe.bits),
    ).train()
    transform = [model.analysis, model.synthesis]
    main = [*transform, model.log_step]
    optimiser = torch.optim.Adam(
        [{"params": [model.log_step], "scale": 1.0}, {"params": transform, "scale": recipe.transform}]
    )
    follower = Follower(model, pool([*world[:6000], *easy[:600]], seed), seed)
    saved, step, weight, running = out / "codec.ckpt", 0, recipe.rate_weight, dict[str, float]()
    finest, wanted_bits = model.qualities - 1, recipe.bits[-1]
    warm = recipe.warm if start is None else 0
    if (state := resume.load(saved, basis)) is None:
        measure = _begin(model, answerer, packer, world, easy, recipe, start, seed, autocast)
    else:
        measure = state["measure"]
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        follower.load_state_dict(state["follower"])
        step, weight, running = state["step"], state["weight"], state["running"]
    total = warm + recipe.steps
    batches = Questions({"world": world, "large": large, "easy": easy}, packer, recipe, seed, step).ahead()
    began, first = time.monotonic(), step
    while step < total:
        rate = recipe.rate * min(1.0, (step + 1) / 30, 2 * (total - step) / total)
        for _ in range(recipe.follow):
            follower.step(recipe.entropy * recipe.rate, finest)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        batch, whole = next(batches)
        x = batch.features
        x_hat, bits = model(x, finest)
        if step < warm:
            error = F.linear(x_hat - x, measure).square().sum(-1).mean()
            distortion = error / F.linear(x - model.mean, measure).square().sum(-1).mean()
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                with torch.no_grad():
                    wanted = answerer(batch).float().log_softmax(-1)
                got = answerer(batch, x_hat).float().log_softmax(-1)
            distortion = F.kl_div(got, wanted, log_target=True, reduction="batchmean")
        loss = distortion + weight * bits.mean()
        loss.backward()
        nn.utils.clip_grad_norm_(main, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        if whole:
            weight *= float(np.exp(0.06 * np.clip(bits.mean().item() / wanted_bits - 1, -1, 1)))
        figures = {"distortion": distortion.item(), "bits a feature": bits.mean().item(), "weight": weight}
        if whole:
            figures["bits of the unmerged"] = bits.mean().item()
        for name, value in figures.items():
            running[name] = 0.95 * running.get(name, value) + 0.05 * value
        if step == warm:
            running.clear()
        if step % 25 == 0:
            speed = (step - first) / (time.monotonic() - began)
            log(
                f"{step}/{total} {speed:.2f} steps/s " + " ".join(f"{k} {v:.4f}" for k, v in running.items()),
                flush=True,
            )
        if step % recipe.save == 0 or step == total:
            with (out / "codec.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, **running}) + "\n")
            state = {
                "measure": measure,
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "follower": follower.state_dict(),
                "step": step,
                "weight": weight,
                "running": running,
            }
            resume.save(saved, state, basis)
    if total:  # the transform and the finest steps have moved since they were spaced
        model.space_steps(follower.seen[:20_000], recipe.bits[:-1])
    for done in range(recipe.settle):
        bits = follower.step(recipe.entropy * recipe.rate * (1 - done / recipe.settle))
        running["settled bits"] = 0.99 * running.get("settled bits", bits) + 0.01 * bits  # of all qualities
        if done % 500 == 499:
            log(f"settled {done + 1}/{recipe.settle} bits {running['settled bits']:.3f}", flush=True)
    with (out / "codec.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, **running}) + "\n")
    torch.save(model.state_dict(), out / "codec.pt")
    return model.eval()


def _begin(
    model: CodecModel,
    answerer: Answerer,
    packer: Packer,
    world: Sequence[Cached],
    easy: Sequence[Cached],
    recipe: Recipe,
    start: CodecWeights | None,
    seed: int,
    autocast: bool,
) -> Tensor:
    """Start the transform where answers are sensitive; that measure's root [D, D] is the first steps' distance.

    Or go on from another codec's, without such steps.
    """
    rng = np.random.default_rng([seed, 23])
    chosen = [world[i].features for i in rng.permutation(len(world))[:400]]
    chosen += [easy[i].features for i in rng.permutation(len(easy))[:40]]
    seen = np.concatenate(chosen).astype(np.float32)
    if start is not None:
        model.continue_from(start, torch.from_numpy(seen), recipe.bits)
        return torch.zeros(0)
    fisher = sensitivity(answerer, packer, world, Rough(seen), batches=recipe.measured, seed=seed, autocast=autocast)
    projector = answerer.projector.weight.detach().double()
    plain = projector.T @ projector
    measure = root(fisher + recipe.plain * plain * (len(plain) / plain.trace())).float()
    model.start_from(torch.from_numpy(seen), measure, recipe.bits)
    return measure
