"""PaCoRe against the majority vote and the single answer, on test pictures through packets.

    test questions ─ 16 samples each ─┬─ mean, vote, any
                                      ├─ synthesis with the picture, and without it
                                      └─ greedy answer beside them          → accuracies, paired differences

Promises paired bootstrap intervals over pictures, not questions: those about one picture are not independent. Leaves
the decoder to `train`; nothing here is used to choose it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tofc import json_text
from tofc_lab.nano.answerer import Answerer, Reduce
from tofc_lab.nano.features import CachedPicture
from tofc_lab.nano.packing import Packer
from tofc_lab.nano.pacore.pool import Pooled, fill
from tofc_lab.nano.pacore.synthesis import READ, greedy_syntheses, majority
from tofc_lab.progress import NamedProgress

TURNS = 10  # questions about a picture
QUESTION_SEED = 5  # those of `tofc-lab evaluate`
DRAWS = 2000  # of the bootstrap
WAYS = ("greedy", "sample", f"vote-{READ}", f"pacore-{READ}", f"pacore-{READ} without the picture", f"any of {READ}")
SAMPLE, VOTE, PACORE = 1, 2, 3  # of WAYS
PAIRS = ((3, 2), (3, 0), (3, 1), (2, 0), (2, 1), (4, 2), (3, 4))  # of WAYS: the first minus the second

#: of each question: what is right in each way [questions, ways], and its messages that are right [questions]
Outcomes = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A decoder to measure, and the folder that keeps its samples and syntheses."""

    name: str
    answerer: Answerer
    packer: Packer
    folder: Path
    reads_samples: bool = True  # whether it was trained on synthesis prompts


def measure(
    decoder: Decoder, pictures: Sequence[CachedPicture], reduce: Reduce, progress: NamedProgress
) -> tuple[list[Pooled], Outcomes]:
    """Return the questions with their samples, and what is right; what an interrupted run computed is used again."""
    pooled = fill(
        decoder.answerer,
        decoder.packer,
        pictures,
        0,
        reduce,
        decoder.folder / "samples-test",
        turns=TURNS,
        seed=0,
        question_seed=QUESTION_SEED,
        progress=progress,
    )
    ways: list[Sequence[float]] = [
        [one.greedy == one.answer for one in pooled],
        [float(np.mean([text == one.answer for text in one.samples[:READ]])) for one in pooled],
        [majority(one.samples[:READ]) == one.answer for one in pooled],
    ]
    for blind in (False, True):
        ways.append(_syntheses(decoder, pooled, pictures, reduce, progress, blind=blind))
    ways.append([one.answer in one.samples[:READ] for one in pooled])
    return pooled, np.array(ways, float).T


def _syntheses(
    decoder: Decoder,
    pooled: Sequence[Pooled],
    pictures: Sequence[CachedPicture],
    reduce: Reduce,
    progress: NamedProgress,
    *,
    blind: bool,
) -> Sequence[float]:
    """Return whether each synthesis is right; NaN for a decoder that was not trained on synthesis prompts."""
    if not decoder.reads_samples:
        return [float("nan")] * len(pooled)
    kept = decoder.folder / f"syntheses-test{'-blind' if blind else ''}-{len(pooled)}.json"
    if not kept.exists():
        shown = _named(progress, f"syntheses{' without pictures' if blind else ''}")
        given = greedy_syntheses(
            decoder.answerer, decoder.packer, pictures, pooled, reduce, blind=blind, progress=shown
        )
        json_text.write(kept, given)
    return [given == one.answer for given, one in zip(json_text.read(kept), pooled, strict=True)]


def _named(progress: NamedProgress, name: str) -> Callable[[Any, int], Any]:
    return lambda items, total: progress(items, total, name)


def summary(pooled: Sequence[Pooled], right: Outcomes) -> dict[str, Any]:
    """Return accuracies with 95 % intervals, paired differences, and emergent correctness.

    Ways that were not measured (NaN) are left out.
    """
    where = np.array([one.picture for one in pooled])
    of_family = {name: [one.family == name for one in pooled] for name in sorted({one.family for one in pooled})}
    measured = [i for i in range(len(WAYS)) if not np.isnan(right[:, i]).any()]
    found: dict[str, Any] = {
        "accuracy": {WAYS[i]: _interval(right[:, i], where) for i in measured},
        "difference": {
            f"{WAYS[a]} − {WAYS[b]}": _interval(right[:, a] - right[:, b], where)
            for a, b in PAIRS
            if a in measured and b in measured
        },
        "family": {
            name: {"questions": sum(mask)} | {WAYS[i]: round(float(right[mask, i].mean()), 4) for i in measured}
            for name, mask in of_family.items()
        },
    }
    if PACORE in measured:
        found["emergent"] = _emergent(right)
    return found


def _emergent(right: Outcomes) -> dict[str, dict[str, int]]:
    """Return how many questions PaCoRe and the vote answer right, by the share of messages that are right."""
    messages = right[:, SAMPLE]
    shares = {
        "no message right": messages == 0,
        "fewer than half right": (messages > 0) & (messages < 0.5),
        "at least half right": messages >= 0.5,
    }
    return {
        name: {
            "questions": int(these.sum()),
            "pacore right": int(right[these, PACORE].sum()),
            "vote right": int(right[these, VOTE].sum()),
        }
        for name, these in shares.items()
    }


def _interval(values: NDArray[np.float64], where: NDArray[np.int64]) -> list[float]:
    """Return the mean and its 95 % bootstrap interval, resampling whole pictures: `where` [questions]."""
    count = int(where.max()) + 1
    sums = np.bincount(where, values, count)
    asked = np.bincount(where, minlength=count)
    picks = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS)  # [draws, pictures]
    means = (picks @ sums) / (picks @ asked)
    return [round(float(one), 4) for one in (values.mean(), *np.quantile(means, (0.025, 0.975)))]


def report(
    decoders: Sequence[Decoder],
    pictures: Sequence[CachedPicture],
    reduce: Reduce,
    out: Path,
    about: dict[str, Any],
    progress: NamedProgress,
) -> dict[str, Any]:
    """Measure all decoders on the same questions, write the report to `out` (JSON) and return it."""
    found: dict[str, Any] = {
        "command": "tofc-lab nano pacore-report",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "pictures": len(pictures),
        **about,
        "decoders": {},
    }
    measured = {}
    for decoder in decoders:
        pooled, right = measure(decoder, pictures, reduce, progress)
        measured[decoder.name] = right
        found["questions"] = len(pooled)
        found["decoders"][decoder.name] = summary(pooled, right)
    if len(decoders) == 2:  # the same questions, so that these are paired too
        first, second = measured.values()
        where = np.array([one.picture for one in pooled])
        found["second − first"] = {way: _interval(second[:, i] - first[:, i], where) for i, way in enumerate(WAYS[:3])}
    out.parent.mkdir(parents=True, exist_ok=True)
    json_text.write(out, found)
    return found
