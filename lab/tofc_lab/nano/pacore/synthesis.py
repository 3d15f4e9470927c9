"""The greedy answers to synthesis prompts, of many questions at once.

Promises what greedy decoding gives. An answer is guessed first, and checked in one forward: it is right where each of
its tokens is the decoder's most likely one. Only the others are decoded step by step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tofc_lab.nano.answerer import Answerer, Reduce, visual_input
from tofc_lab.nano.features import CachedPicture
from tofc_lab.nano.packing import Packer
from tofc_lab.nano.pacore.blocks import Block, answer_ids, pack, prompt_ids
from tofc_lab.nano.pacore.examples import synthesis
from tofc_lab.nano.pacore.pool import Pooled
from tofc_lab.nano.pacore.sampling import sample
from tofc_lab.progress import Progress, no_progress

READ = 16  # samples that a synthesis reads: PaCoRe's setting "medium"


def majority(samples: Sequence[str]) -> str:
    """Return the most frequent sample that is not empty, of equally frequent ones the first: as the server votes."""
    said = [one for one in samples if one]
    return max(said, key=said.count) if said else ""


@torch.no_grad()
def greedy_syntheses(
    answerer: Answerer,
    packer: Packer,
    pictures: Sequence[CachedPicture],
    pooled: Sequence[Pooled],
    reduce: Reduce,
    *,
    blind: bool,
    batch: int = 24,
    progress: Progress = no_progress,
) -> list[str]:
    """Return the answer to the synthesis of each question's first READ samples; `blind`: without its picture.

    `pictures` are found by the number in `pooled`.
    """
    answers: list[str] = []
    starts = range(0, len(pooled), batch)
    for at in progress(starts, len(starts)):
        group = pooled[at : at + batch]
        inputs = {} if blind else {n: visual_input(pictures[n], reduce) for n in {one.picture for one in group}}
        shown = [inputs.get(one.picture) for one in group]
        prompts = prompt_ids(packer, [synthesis(one.question, one.samples[:READ]) for one in group])
        guesses = [majority(one.samples[:READ]) for one in group]
        wanted = answer_ids(packer, guesses)
        blocks = [[Block(ids=[*ids, *tail], answer=len(tail))] for ids, tail in zip(prompts, wanted, strict=True)]
        packed = pack(packer, shown, blocks, answerer.projector.in_features)
        there = packed.targets >= 0
        missed = answerer(packed).argmax(-1) != packed.targets[there]
        wrong = torch.zeros(len(group)).index_add_(0, packed.owner[there], missed.float()).tolist()
        others = [index for index, misses in enumerate(wrong) if misses]
        if others:
            decoded = sample(
                answerer,
                packer,
                [shown[i] for i in others],
                [[prompts[i]] for i in others],
                0,
                [[np.random.default_rng(0)] for _ in others],
            )
            for index, (one,) in zip(others, decoded, strict=True):
                guesses[index] = one.greedy
        answers += guesses
    return answers
