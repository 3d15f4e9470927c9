"""Training of nano's decoder on synthesis prompts, mixed with ordinary questions so that it still answers those.

    pool of samples ─ filter ─ draw ─→ synthesis prompts with the right answer ─┐
    pictures and questions of `tofc_lab.nano.decoder` ──────────────────────────┴─→ one step

Supervised, where the published recipe is reinforcement learning: an answer of nano is one to three tokens without
thinking, so that the right one can be shown, and two CPU cores can't pay for rollouts in every step. Promises that an
interrupted run resumes, and validation accuracy with and without synthesis in its log.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

from tofc.json_text import dumps
from tofc_lab.codec.feature_noise import PcaNoise
from tofc_lab.nano import decoder_state
from tofc_lab.nano.answerer import Answerer, merging, visual_input
from tofc_lab.nano.batches import Batches
from tofc_lab.nano.decoder import DecoderBatches, DecoderRecipe, optimisers_of
from tofc_lab.nano.evaluate import accuracy, score
from tofc_lab.nano.features import CachedPicture
from tofc_lab.nano.packing import Batch, Packer
from tofc_lab.nano.pacore.blocks import Block, answer_ids, pack, prompt_ids
from tofc_lab.nano.pacore.examples import draw
from tofc_lab.nano.pacore.pool import Pooled
from tofc_lab.nano.pacore.synthesis import READ, greedy_syntheses, majority
from tofc_lab.progress import Log, print_now, smooth, step_line
from tofc_lab.resume import NONE, Settings

ORDINARY = DecoderRecipe(batch=10, turns=8, early=0)  # the ordinary questions of a step


@dataclass(frozen=True, kw_only=True)
class SynthesisRecipe:
    """Steps, learning rate and the mix of synthesis prompts."""

    steps: int = 350
    batch: int = 24  # synthesis prompts of a step
    rate: float = 5e-4
    decay: float = 0.6  # share of the steps, at the end, over which the learning rate falls to 0
    unfiltered: float = 0.15  # share of prompts from all questions of the pool, filtered or not
    blind: float = 0.15  # share of prompts without the picture
    merged: float = 0.4  # share of pictures with merged features
    save: int = 100  # steps between checkpoints


class SynthesisBatches(Batches[tuple[Batch, Batch]]):
    """Endless pairs of a batch of ordinary questions and one of synthesis prompts; both depend only on (seed, step)."""

    def __init__(
        self,
        ordinary: DecoderBatches,
        pictures: Sequence[CachedPicture],
        chosen: Sequence[Pooled],
        pool: Sequence[Pooled],
        packer: Packer,
        recipe: SynthesisRecipe,
        seed: int,
        first: int,
    ) -> None:
        self.ordinary, self.pictures, self.chosen, self.pool = ordinary, pictures, chosen, pool
        self.packer, self.recipe, self.seed, self.first = packer, recipe, seed, first

    def draw(self, step: int) -> tuple[Batch, Batch]:
        """Return the two batches of a step."""
        recipe, rng = self.recipe, np.random.default_rng([self.seed, 61, step])
        asked, shown = [], []
        for _ in range(recipe.batch):
            source = self.pool if rng.random() < recipe.unfiltered else self.chosen
            one = source[int(rng.integers(len(source)))]
            share = float(rng.uniform(0.3, 1.0)) if rng.random() < recipe.merged else 1.0
            blind = rng.random() < recipe.blind
            asked.append(one)
            shown.append(None if blind else visual_input(self.pictures[one.picture], merging(share=share)))
        prompts = prompt_ids(self.packer, [draw(rng, one) for one in asked])
        answers = answer_ids(self.packer, [one.answer for one in asked])
        blocks = [
            [Block(ids=[*prompt, *answer], answer=len(answer))] for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return self.ordinary.draw(step)[1], pack(self.packer, shown, blocks, self.pictures[0].features.shape[1])


def train(
    answerer: Answerer,
    tokenizer: PreTrainedTokenizerFast,
    pictures: dict[str, Sequence[CachedPicture]],
    pool: Sequence[Pooled],
    chosen: Sequence[Pooled],
    validation: tuple[Sequence[CachedPicture], Sequence[Pooled]],
    out: Path,
    *,
    inputs: Settings = NONE,
    recipe: SynthesisRecipe | None = None,
    seed: int = 0,
    autocast: bool = True,
    workers: int = 1,
    log: Log = print_now,
) -> Answerer:
    """Run the recipe from `answerer`, resuming from `out/decoder.ckpt`, and write `out/decoder.pt`.

    Args:
        pictures: by kind, as `DecoderBatches` has them; the numbers of the pool are those of "world".
        chosen: the filtered part of the pool.
        validation: pictures, and questions about them with samples.
    """
    recipe = recipe or SynthesisRecipe()
    settings = decoder_state.settings_of(inputs, recipe, seed)
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    packer, saved = Packer(tokenizer), out / "decoder.ckpt"
    answerer.train()
    optimisers = optimisers_of(answerer, ORDINARY)
    step, running = decoder_state.restore(saved, settings, answerer, optimisers)
    features = np.concatenate([one.features for one in pictures["world"][:200]]).astype(np.float32)
    ordinary = DecoderBatches(pictures, PcaNoise.fit(features), packer, ORDINARY, seed + 1, step)
    batches = SynthesisBatches(ordinary, pictures["world"], chosen, pool, packer, recipe, seed, step).ahead(workers)
    started, first = time.monotonic(), step
    while step < recipe.steps:
        plain, asked = next(batches)
        rate = recipe.rate * min(1.0, (step + 1) / 50, (recipe.steps - step) / (recipe.decay * recipe.steps))
        decoder_state.set_rate(optimisers, rate)
        losses = {}
        for name, batch in (("plain", plain), ("synthesis", asked)):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logits = answerer(batch)
            losses[name] = F.cross_entropy(logits.float(), batch.targets[batch.targets >= 0])
            losses[name].backward()
        decoder_state.update(answerer, optimisers)
        step += 1
        smooth(running, {name: loss.item() for name, loss in losses.items()})
        if step % 25 == 0 or step == 5:
            log(step_line(step, recipe.steps, (step - first) / (time.monotonic() - started), running))
        if step % recipe.save == 0 or step == recipe.steps:
            answerer.eval()
            scores = validate(answerer, packer, *validation)
            answerer.train()
            log("  validation " + " ".join(f"{k} {v:.3f}" for k, v in scores.items()))
            with (out / "decoder.jsonl").open("a", encoding="utf-8") as file:
                file.write(dumps({"step": step, **running, "validation": scores}) + "\n")
            decoder_state.save(saved, settings, answerer, optimisers, step=step, running=running)
    torch.save(answerer.state_dict(), out / "decoder.pt")
    return answerer.eval()


def validate(
    answerer: Answerer, packer: Packer, pictures: Sequence[CachedPicture], pooled: Sequence[Pooled], most: int = 40
) -> dict[str, float]:
    """Return accuracies on the first `most` pictures: ordinary, and of syntheses of samples of the start."""
    about = [one for one in pooled if one.picture < most]
    answers = {"plain": accuracy(score(answerer, packer, pictures[:most], merging()))["all"]}
    for name, blind in (("synthesis", False), ("blind", True)):
        given = greedy_syntheses(answerer, packer, pictures, about, merging(), blind=blind)
        answers[name] = float(np.mean([one == asked.answer for one, asked in zip(given, about, strict=True)]))
    votes = [majority(one.samples[:READ]) == one.answer for one in about]
    return {**answers, "vote": float(np.mean(votes))}
