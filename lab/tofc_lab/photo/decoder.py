"""Training of the photo model's decoder, projector and grid embedding, on new scenes at every step: nano's parts.

    maps ─ scene ─ merged, sometimes with noise ─ packed with its questions ─ answerer ─ losses of answers and attention

Promises that an interrupted run can be resumed, and continued to more steps. The tower is frozen.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3Config

from tofc.json_text import dumps
from tofc_lab import resume
from tofc_lab.codec.feature_noise import FeatureNoise, PcaNoise
from tofc_lab.nano import answerer as nano_answerer
from tofc_lab.nano import decoder_state
from tofc_lab.nano.answerer import SIDES, SLOT, SUPERVISED_HEADS, Answerer, merging, visual_input
from tofc_lab.nano.batches import Batches
from tofc_lab.nano.decoder import losses_by_family, optimisers_of
from tofc_lab.nano.evaluate import accuracy, score
from tofc_lab.nano.packing import AttentionLabel, Batch, Packer, QuestionAnswer
from tofc_lab.photo import asked_scenes, names
from tofc_lab.photo.asked_scenes import AskedScene
from tofc_lab.photo.features import Maps
from tofc_lab.photo.names import plural
from tofc_lab.photo.pictures import GRID
from tofc_lab.photo.tower import Reader
from tofc_lab.progress import Log, print_now, smooth, step_line
from tofc_lab.resume import NONE, Settings

#: how often the families are drawn in training: those that need a thing to be found are learned last, and the long
#: answers of "read" would outweigh all others
WEIGHTS = {"what": 3.0, "place": 2.0, "exist": 2.0, "where": 2.0, "count": 1.0, "colour": 1.5, "read": 0.35}
COPIED = 0.15  # of what is attended to, at the start
SAMPLED = 200  # scenes from which the start and the noise are computed


@dataclass(frozen=True, kw_only=True)
class PhotoRecipe:
    """Steps, learning rates and the mix of batches; `grid` and `projector` as in nano's recipe."""

    steps: int = 3500
    batch: int = 16  # pictures of a batch
    turns: int = 8  # questions about each picture
    rate: float = 7e-4
    projector: float = 0.5
    grid: float = 4.0
    attention_weight: float = 0.5
    cells: float = 0.5  # weight of the loss of `with_cells`
    warm: int = 50  # first steps, in which the learning rate rises
    warm_matrices: int = 200  # the same for layers and projector: at first, large losses would undo how they start
    decay: float = 0.6  # share of the steps, at the end, over which the learning rate falls to 0
    save: int = 200  # steps between checkpoints
    merged: float = 0.4  # share of batches with merged features
    noisy: float = 0.3  # share of batches with noise on the features
    wide: float = 0.12  # share of batches whose pictures have crops, as those that are wide or high have
    conversation: float = 0.1  # share of batches whose questions attend to earlier ones


def config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """Return the configuration of the photo model's decoder."""
    nano = nano_answerer.config(tokenizer)
    nano.num_hidden_layers = 5
    nano.layer_types = ["full_attention"] * 5
    nano.num_key_value_heads = nano.num_attention_heads  # which of 1 000 names it is must pass through the values
    return nano


class PhotoBatches(Batches[Batch]):
    """Endless batches from step `first` on; batch `step` depends only on `(seed, step)`."""

    def __init__(
        self,
        maps: Maps,
        reader: Reader,
        noise: FeatureNoise,
        packer: Packer,
        recipe: PhotoRecipe,
        seed: int,
        first: int,
    ) -> None:
        self.maps, self.reader, self.noise, self.packer, self.recipe = maps, reader, noise, packer, recipe
        self.seed, self.first = seed, first

    def draw(self, step: int) -> Batch:
        recipe, rng = self.recipe, np.random.default_rng([self.seed, 17, step])
        share = float(rng.uniform(0.25, 1.0)) if rng.random() < recipe.merged else 1.0
        numbers = rng.integers(SAMPLED, 2**40, size=recipe.batch).tolist()
        chosen = asked_scenes.make(self.maps, self.reader, "train", numbers, self.seed)
        if rng.random() < recipe.wide:
            chosen = [with_crops(rng, one) for one in chosen]
        shown = [visual_input(one, merging(share=share)) for one in chosen]
        if rng.random() < recipe.noisy:
            shown = [replace(one, features=self.noise.apply(rng, one.features, one.views)) for one in shown]
        asked = [draw_questions(rng, one, recipe.turns, WEIGHTS) for one in chosen]
        return self.packer.pack(shown, asked, independent=bool(rng.random() >= recipe.conversation))


def with_crops(rng: np.random.Generator, scene: AskedScene) -> AskedScene:
    """Return a scene with the crops of a wide or high picture before its view, of the view's own nearest features."""
    count, side = int(rng.integers(2, 4)), SIDES[0]
    view = scene.features.reshape(GRID, GRID, -1)
    along, across = np.arange(count * side) * GRID // (count * side), np.arange(side) * GRID // side
    wide = bool(rng.random() < 0.7)
    parts = np.split(along, count)
    crops = [view[across][:, part] if wide else view[part][:, across] for part in parts]
    features = np.concatenate([*(crop.reshape(side * side, -1) for crop in crops), scene.features])
    rows, columns = (1, count) if wide else (count, 1)
    return replace(scene, features=features, sides=(*[side] * count, GRID), rows=rows, columns=columns)


def draw_questions(
    rng: np.random.Generator, scene: AskedScene, count: int, weights: Mapping[str, float] | None = None
) -> list[QuestionAnswer]:
    """Return `count` of the questions about a scene, or fewer if there are no more; families by weight, or as asked."""
    if weights is None:
        chosen = rng.permutation(len(scene.questions))
    else:  # the largest of weighted random numbers: a draw without replacement
        powers = [1 / weights[one.family] for one in scene.questions]
        chosen = np.argsort(-(rng.random(len(powers)) ** powers))
    return [scene.questions[i] for i in chosen[:count]]


@torch.no_grad()
def with_cells(batch: Batch, reader: Reader, tokens: Tensor, clear: float = 0.4) -> Batch:
    """Return a batch in which each feature's own token is to predict the name that the tower's reader sees in it.

    From answers alone a decoder learns to say 1 000 names slowly: a step has few answers that are names, but
    hundreds of features. Those that show nothing `clear` have no target. `tokens` [1000]: of the classes' names.
    """
    sure, best = reader.names(batch.features).softmax(-1).max(-1)
    targets = batch.targets.clone()
    targets[batch.image] = torch.where(sure > clear, tokens[best], -100)
    return replace(batch, targets=targets)


def reading_directions(reader: Reader, features: Tensor, width: int) -> Tensor:
    """Return the directions [width, D] of features [T, D] in which the tower's readers read most, as a projector.

    They are the principal components of what the readers say, names first, with roots of their spreads as lengths,
    turned at random: each head of attention carries some of the numbers, and should carry something of each.
    """
    each = (reader.names.weight, 0.5 * reader.colours.weight, 0.3 * reader.characters.weight)
    heads = torch.cat([head - head.mean(0) for head in each])
    root = torch.linalg.cholesky(features.T.cov() + 1e-4 * torch.eye(features.shape[1]))
    _, strength, directions = torch.linalg.svd(heads @ root, full_matrices=False)
    turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0))).Q
    found: Tensor = turn @ (strength[:width, None].sqrt() * directions[:width]) @ torch.linalg.inv(root)
    return found


@torch.no_grad()
def start_names(answerer: Answerer, reader: Reader, tokenizer: PreTrainedTokenizerFast, features: Tensor) -> None:
    """Start the tokens of each name from the reader of names, behind the projector: a feature's row says its name.

    A group starts as the mean of its names. `features` [T, D] give the scale of rows behind the last normalisation.
    """
    known = names.load()
    embedding, output = answerer.decoder.model.embed_tokens.weight, answerer.decoder.lm_head.weight
    rows = answerer.projector(features)
    members = torch.from_numpy(known.members)
    read = reader.names.weight - reader.names.weight.mean(0)
    shown = (members @ read) / members.sum(1, keepdim=True) @ torch.linalg.pinv(answerer.projector.weight)  # [words, H]
    shown *= rows.norm(dim=1).mean() / rows.shape[1] ** 0.5  # the last normalisation makes rows of another length
    size = embedding.norm(dim=1).mean()
    for word, row in zip(known.words, shown, strict=True):
        for form in (word, plural(word)):
            ids = tokenizer(form, add_special_tokens=False)["input_ids"]
            if len(ids) == 1:
                output[ids[0]] = row
                embedding[ids[0]] = 0.5 * embedding[ids[0]] + 0.9 * size * F.normalize(row, dim=0)


@torch.no_grad()
def start_copying(answerer: Answerer, share: float = COPIED) -> None:
    """Start attention as a copy: values are what is attended to, and a `share` of it is added to the residual.

    So an answer starts as the mean of what its question and the picture show, and training only has to learn where to
    look (compare the initialisation by Trockman and Kolter, arXiv 2305.09828).
    """
    for layer in answerer.decoder.model.layers:
        nn.init.zeros_(layer.mlp.down_proj.weight)
        nn.init.eye_(layer.self_attn.v_proj.weight)
        layer.self_attn.o_proj.weight.copy_(share * torch.eye(len(layer.self_attn.o_proj.weight)))


@torch.no_grad()
def start_finding(
    answerer: Answerer,
    reader: Reader,
    tokenizer: PreTrainedTokenizerFast,
    features: Tensor,
    ranks: int = 32,
) -> None:
    """Start the head whose attention is trained on names from a least-squares map of features [P, 36, D] to names.

    The map is the best one of `ranks` from what the first layer sees of a feature to the embedding of the words that
    the reader sees in it. Its two factors become keys and queries, in dimensions that rotate slowly, so
    that a name finds its features wherever they are. Found by training alone, this takes many hundred steps.
    """
    known, layer = names.load(), answerer.decoder.model.layers[0]
    place = answerer.grid.weight[SLOT[GRID] :][: features.shape[1]]
    seen = layer.input_layernorm(answerer.projector(features) + place).flatten(0, 1)  # [T, H]
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in known.words]
    embedded = layer.input_layernorm(answerer.decoder.model.embed_tokens.weight[ids])  # [words, H]
    of_words = reader.names(features).softmax(-1).flatten(0, 1) @ torch.from_numpy(known.members).T
    wanted = of_words @ (embedded - embedded.mean(0))
    centred = seen - seen.mean(0)
    power = centred.T @ centred / len(seen)
    power += 0.01 * centred.var(0).mean() * torch.eye(len(power))
    shared = centred.T @ (wanted - wanted.mean(0)) / len(seen)
    left, strength, right = torch.linalg.svd(torch.linalg.solve(power, shared))
    strength = strength[:ranks].sqrt()
    number, (head,) = SUPERVISED_HEADS[AttentionLabel.NAME]
    assert number == 0, "only the first layer sees features as they are"
    attention, config = layer.self_attn, answerer.decoder.config
    size = int(config.head_dim or 0)
    group = head * int(config.num_key_value_heads or 1) // config.num_attention_heads
    slow = torch.tensor([*range(size // 4, size // 2), *range(3 * size // 4, size)])[:ranks]
    for weight, first, factor, mean in (
        (attention.k_proj.weight, group * size, left[:, :ranks].T * strength[:, None], seen.mean(0)),
        (attention.q_proj.weight, head * size, right[:ranks] * strength[:, None], embedded.mean(0)),
    ):
        direction = F.normalize(mean, dim=0)
        weight[first : first + size] = 0
        weight[first + slow] = factor - (factor @ direction)[:, None] * direction


def train(
    maps: Maps,
    validation: Sequence[AskedScene],
    reader: Reader,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    *,
    inputs: Settings = NONE,
    start: Path | None = None,
    recipe: PhotoRecipe | None = None,
    noise: FeatureNoise | None = None,
    seed: int = 0,
    autocast: bool = True,
    workers: int = 1,
    log: Log = print_now,
) -> Answerer:
    """Run the recipe, resuming from `out/decoder.ckpt`, and write `out/decoder.pt`.

    A checkpoint of fewer steps is continued to `recipe.steps`; one of other inputs or settings is refused.
    `start` is the `decoder.pt` of another run to start from; its scenes are not drawn again.
    """
    recipe = recipe or PhotoRecipe()
    origin = None if start is None else resume.fingerprint(start)
    inputs = {**inputs, "--start": origin}
    drawn = seed if origin is None else int(origin, 16) + seed
    settings = decoder_state.settings_of(inputs, recipe, seed)
    settings.pop("--steps")
    torch.manual_seed(seed)
    packer = Packer(tokenizer)
    scenes = asked_scenes.make(maps, reader, "train", range(SAMPLED), seed)
    sample = np.concatenate([one.features for one in scenes]).astype(np.float32)
    answerer = Answerer(sample.shape[1], config(tokenizer))
    features = torch.from_numpy(sample)
    if start is None:
        answerer.start_from(features, reading_directions(reader, features, answerer.projector.out_features))
        start_names(answerer, reader, tokenizer, features)
        start_copying(answerer)
        start_finding(answerer, reader, tokenizer, features.unflatten(0, (-1, GRID * GRID)))
    else:
        answerer.load_state_dict(torch.load(start, weights_only=True))
    optimisers = optimisers_of(answerer, recipe)
    saved = out / "decoder.ckpt"
    step, running = decoder_state.restore(saved, settings, answerer, optimisers)
    tokens = torch.tensor([tokenizer(name, add_special_tokens=False)["input_ids"][0] for name in names.load().names])
    batches = PhotoBatches(maps, reader, noise or PcaNoise.fit(sample, 192), packer, recipe, drawn, step).ahead(workers)
    started, first = time.monotonic(), step
    while step < recipe.steps:
        batch = next(batches)
        rate = recipe.rate * min(1.0, (recipe.steps - step) / (recipe.decay * recipe.steps))
        for optimiser, warm in zip(optimisers, (recipe.warm, recipe.warm_matrices), strict=True):
            decoder_state.set_rate([optimiser], rate * min(1.0, (step + 1) / warm))
        named = with_cells(batch, reader, tokens)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits, attention = answerer.forward_with_attention(named)
        losses = F.cross_entropy(logits.float(), named.targets[named.targets >= 0], reduction="none")
        of_cells = batch.image[named.targets >= 0]
        answers, cells = losses[~of_cells], losses[of_cells].sum() / of_cells.sum().clamp(min=1)
        attention_loss = -(attention + 1e-4).log().mean() if len(attention) else losses.new_zeros(())
        (answers.mean() + recipe.attention_weight * attention_loss + recipe.cells * cells).backward()
        decoder_state.update(answerer, optimisers)
        step += 1
        values = {"loss": answers.mean().item(), "attention": attention_loss.item(), "cells": cells.item()}
        smooth(running, values | losses_by_family(batch, answers))
        if step % 25 == 0:
            log(step_line(step, recipe.steps, (step - first) / (time.monotonic() - started), running))
        if step % recipe.save == 0 or step == recipe.steps:
            scores = validate(answerer, packer, validation)
            log("  validation " + " ".join(f"{k} {v:.3f}" for k, v in scores.items()))
            with (out / "decoder.jsonl").open("a", encoding="utf-8") as file:
                file.write(dumps({"step": step, **running, "validation": scores}) + "\n")
            decoder_state.save(saved, settings, answerer, optimisers, step=step, running=running)
            torch.save(answerer.state_dict(), out / "decoder.pt")
    torch.save(answerer.state_dict(), out / "decoder.pt")
    return answerer


def validate(answerer: Answerer, packer: Packer, scenes: Sequence[AskedScene], turns: int = 10) -> dict[str, float]:
    """Return the accuracy by family of questions about held-out photographs, all features shown."""
    rng = np.random.default_rng(5)
    asked = [draw_questions(rng, one, turns) for one in scenes]
    return accuracy(score(answerer, packer, scenes, merging(), chosen=asked))
