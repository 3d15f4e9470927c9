"""A PaCoRe run: the folder in which nano's decoder learns to read its own samples.

    nano's run ─ tower's features, decoder.pt, tokenizer/
        └─→ out/: samples-train/, samples-validation/ ─ tokenizer/ (wider) ─ decoder.ckpt ─ decoder.pt

Promises that the test pictures are not touched, that the pictures of the pool are those that the decoder was not
trained on, and that every step resumes. Leaves the arithmetic to `pool`, `vocabulary`, `filters` and `train`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from tofc.errors import UsageError
from tofc_lab import resume
from tofc_lab.nano import answerer as answering
from tofc_lab.nano import features
from tofc_lab.nano.answerer import Answerer, merging
from tofc_lab.nano.packing import Packer
from tofc_lab.nano.pacore import filters
from tofc_lab.nano.pacore.blocks import prompt_ids
from tofc_lab.nano.pacore.examples import synthesis
from tofc_lab.nano.pacore.pool import Pooled, fill
from tofc_lab.nano.pacore.sampling import sample
from tofc_lab.nano.pacore.train import SynthesisRecipe, train
from tofc_lab.nano.pacore.vocabulary import extend, extended_state, spelt
from tofc_lab.progress import Log, NamedProgress, print_now

FIRST = 10_000  # the decoder was trained on the pictures before this one
TURNS = 8  # questions about each picture of the pool
POOL_SEED, VALIDATION_SEED = 59, 5  # of the questions
CHECKED = 8  # syntheses of a question by which stage 2 decides

FILTERS = ("disagreeing", "stage-1", "stage-2")


@dataclass(frozen=True, kw_only=True)
class Pools:
    """Questions with samples, to train on and to validate with."""

    training: list[Pooled]
    validation: list[Pooled]


def fill_pools(run: Path, out: Path, pictures: int, seed: int, progress: NamedProgress) -> Pools:
    """Sample the answers of nano's decoder to questions about `pictures` pictures from FIRST on, and on validation."""
    folder = features.folder(run)
    decoder, tokenizer = _decoder(run / "decoder.pt", run / "tokenizer")
    packer = Packer(tokenizer)
    world = features.load(folder, "world", "train", FIRST + pictures)[FIRST:]
    if not world:
        raise UsageError(
            f"{folder} must have more than {FIRST} pictures, which the decoder has not seen; run `tofc-lab nano "
            "features` first"
        )
    training = fill(
        decoder,
        packer,
        world,
        FIRST,
        merging(),
        out / "samples-train",
        turns=TURNS,
        seed=seed,
        question_seed=POOL_SEED,
        progress=progress,
    )
    validation = fill(
        decoder,
        packer,
        features.load(folder, "world", "validation", features.TRAINING_SIZES["world", "validation"]),
        0,
        merging(),
        out / "samples-validation",
        turns=10,
        seed=seed,
        question_seed=VALIDATION_SEED,
        progress=progress,
    )
    return Pools(training=training, validation=validation)


def widen(run: Path, out: Path, texts: Iterable[str]) -> tuple[Answerer, PreTrainedTokenizerFast]:
    """Write the tokenizer with the prompt's words to `out`, and return it with the decoder for it.

    `texts` are tokenised as before.
    """
    if not (out / "tokenizer" / "tokenizer.json").exists():
        extend(run / "tokenizer", out / "tokenizer", sorted(set(texts)))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "tokenizer")
    state = torch.load(run / "decoder.pt", weights_only=True)
    decoder = Answerer(state["projector.weight"].shape[1], answering.config(tokenizer))
    decoder.load_state_dict(extended_state(state, spelt(run / "tokenizer", out / "tokenizer")))
    return decoder.eval(), tokenizer


def train_run(
    run: Path,
    out: Path,
    *,
    pictures: int,
    recipe: SynthesisRecipe,
    kept: str,
    seed: int,
    progress: NamedProgress,
    log: Log = print_now,
) -> None:
    """Fill the pools, widen the vocabulary and train; every part resumes. `kept`: one of FILTERS."""
    inputs = answering.inputs_of(run) | {"--pictures": pictures, "--filter": kept}
    out.mkdir(parents=True, exist_ok=True)
    pools = fill_pools(run, out, pictures, seed, progress)
    folder = features.folder(run)
    shown: dict[str, Sequence[features.CachedPicture]] = {
        "world": features.load(folder, "world", "train", FIRST + pictures),
        "large": features.load(folder, "large", "train", 1600),
        "easy": features.load(folder, "easy", "train", 2500),
    }
    validation = features.load(folder, "world", "validation", 300)
    texts = [(one.question, one.answer) for one in pools.training]
    texts += [pair for one in shown["easy"] for pair in one.asked]
    decoder, tokenizer = widen(run, out, (text for pair in texts for text in pair))
    if kept == "stage-2":
        start = out / "stage-1" / "decoder.pt"
        if not start.exists():
            raise UsageError(f"--filter stage-2 continues from {start}; run with --filter stage-1 first")
        decoder.load_state_dict(torch.load(start, weights_only=True))
        inputs |= {"start": resume.fingerprint(start)}
    chosen = _chosen(kept, decoder, Packer(tokenizer), shown["world"], pools.training, seed, log)
    log(f"{len(pools.training)} questions in the pool, {len(chosen)} kept by the filter {kept}")
    train(
        decoder,
        tokenizer,
        shown,
        pools.training,
        chosen,
        (validation, pools.validation),
        out / kept,
        inputs=inputs,
        recipe=recipe,
        seed=seed,
        log=log,
    )


def _chosen(
    kept: str,
    decoder: Answerer,
    packer: Packer,
    pictures: Sequence[features.CachedPicture],
    pool: Sequence[Pooled],
    seed: int,
    log: Log,
) -> list[Pooled]:
    simple: dict[str, Callable[[Sequence[Pooled]], list[Pooled]]] = {
        "disagreeing": filters.disagreeing,
        "stage-1": filters.stage_1,
    }
    if kept in simple:
        return simple[kept](pool)
    of_stage_1, accuracies = filters.stage_1(pool), []
    for at in range(0, len(of_stage_1), 24):
        group = of_stage_1[at : at + 24]
        shown = [answering.visual_input(pictures[one.picture], merging()) for one in group]
        prompts = [[ids] for ids in prompt_ids(packer, [synthesis(one.question, one.samples) for one in group])]
        rngs = [[np.random.default_rng([seed, 67, at + i])] for i in range(len(group))]
        for (answers,), one in zip(sample(decoder, packer, shown, prompts, CHECKED, rngs), group, strict=True):
            accuracies.append(float(np.mean([text == one.answer for text in answers.samples])))
    log(f"syntheses of {len(of_stage_1)} questions: {np.mean(accuracies):.3f} are right")
    return filters.stage_2(of_stage_1, accuracies)


def _decoder(weights: Path, tokens: Path) -> tuple[Answerer, PreTrainedTokenizerFast]:
    state = torch.load(weights, weights_only=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokens)
    decoder = Answerer(state["projector.weight"].shape[1], answering.config(tokenizer))
    decoder.load_state_dict(state)
    return decoder.eval(), tokenizer


def load_trained(out: Path, kept: str) -> tuple[Answerer, PreTrainedTokenizerFast]:
    """Load the decoder that `train_run` trained, with its wider vocabulary."""
    return _decoder(out / kept / "decoder.pt", out / "tokenizer")
