"""The pool of sampled answers: questions about cached pictures, each with many answers at temperature 1.

Promises that a chunk of pictures is written whole or not at all, so that an interrupted run resumes with the next one,
and that it depends only on the decoder, the pictures and the seed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tofc_lab.nano.answerer import Answerer, Reduce, ask, visual_input
from tofc_lab.nano.features import CachedPicture
from tofc_lab.nano.packing import Packer
from tofc_lab.nano.pacore.blocks import prompt_ids
from tofc_lab.nano.pacore.sampling import sample
from tofc_lab.progress import NamedProgress

SAMPLES = 24  # of a question: the pool that the published recipe draws messages from
CHUNK = 25  # pictures in a file


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """A question about the picture with this index, its answer, and what the decoder answers."""

    picture: int
    family: str
    question: str
    answer: str
    greedy: str
    samples: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """The share of samples that are right."""
        return float(np.mean([one == self.answer for one in self.samples]))


def fill(
    answerer: Answerer,
    packer: Packer,
    pictures: Sequence[CachedPicture],
    first: int,
    reduce: Reduce,
    out: Path,
    *,
    turns: int,
    seed: int,
    question_seed: int,
    progress: NamedProgress,
    samples: int = SAMPLES,
) -> list[Pooled]:
    """Write `out/FIRST.json` for each chunk of `pictures`, numbered from `first` on; return all of them.

    `question_seed` decides what is asked about each picture, as in `tofc_lab.nano.evaluate`.
    """
    out.mkdir(parents=True, exist_ok=True)
    found: list[Pooled] = []
    starts = range(0, len(pictures), CHUNK)
    for at in progress(starts, len(starts), f"samples {out.name}"):
        path = out / f"{first + at:06}.json"
        if not path.exists():
            chunk = pictures[at : at + CHUNK]
            new = path.with_suffix(".new")
            new.write_text(
                json.dumps(_chunk(answerer, packer, chunk, first + at, reduce, turns, seed, question_seed, samples)),
                encoding="utf-8",
            )
            new.replace(path)
        values = json.loads(path.read_text(encoding="utf-8"))
        found += [Pooled(**one | {"samples": tuple(one["samples"])}) for one in values]
    return [one for one in found if one.picture < first + len(pictures)]  # an earlier run may have had more


def _chunk(
    answerer: Answerer,
    packer: Packer,
    pictures: Sequence[CachedPicture],
    first: int,
    reduce: Reduce,
    turns: int,
    seed: int,
    question_seed: int,
    samples: int,
) -> list[dict[str, object]]:
    numbers = range(first, first + len(pictures))
    asked = [
        ask(np.random.default_rng([question_seed, number]), one, turns)
        for number, one in zip(numbers, pictures, strict=True)
    ]
    sampled = sample(
        answerer,
        packer,
        [visual_input(one, reduce) for one in pictures],
        [prompt_ids(packer, [one.text for one in questions]) for questions in asked],
        samples,
        [
            [np.random.default_rng([seed, 53, number, turn]) for turn in range(len(questions))]
            for number, questions in zip(numbers, asked, strict=True)
        ],
    )
    return [
        asdict(
            Pooled(
                picture=number,
                family=question.family,
                question=question.text,
                answer=question.answer,
                greedy=answers.greedy,
                samples=answers.samples,
            )
        )
        for number, questions, all_answers in zip(numbers, asked, sampled, strict=True)
        for question, answers in zip(questions, all_answers, strict=True)
    ]
