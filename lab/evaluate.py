"""Accuracy per family, with confidence intervals, for whatever is done to the features in between.

A question counts as right when every token of the answer, its end included, is the decoder's first
choice: exactly when greedy decoding gives that answer. Knows nothing of training.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lab.nano.answerer import CROP_CELLS, Answerer, Reduce, ask, picture
from lab.nano.features import Cached
from lab.nano.packing import Packer
from shared.codec.codec import Codec


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One question: its family, which picture it was about, what the picture cost, whether it was right."""

    family: str
    picture: int
    size: float  # bytes of the picture's packets or file
    features: int  # visual features the decoder saw
    right: bool


def coded(codec: Codec, n: int | None, quality: int) -> Reduce:
    """Through the codec and back: what the edge server decodes. ``n`` None: merges crops only, as the codec says."""
    crop = codec.config.crop_features

    def reduce(view):  # type: ignore[no-untyped-def]  # the alias says it
        most = crop if crop is not None and len(view) == CROP_CELLS else len(view)
        packet = codec.encode(view, min(n or len(view), most), quality)
        decoded = codec.decode(packet)
        return decoded.features, decoded.positions, len(packet)

    return reduce


@torch.no_grad()
def score(
    answerer: Answerer,
    packer: Packer,
    pictures: Sequence[Cached],
    reduce: Reduce,
    *,
    turns: int = 10,
    seed: int = 5,
    batch: int = 25,
) -> list[Outcome]:
    """Ask ``turns`` questions about each picture; the questions depend on ``seed`` and the picture's index only."""
    outcomes: list[Outcome] = []
    for at in range(0, len(pictures), batch):
        group = pictures[at : at + batch]
        shown = [picture(one, reduce) for one in group]
        asked = [ask(np.random.default_rng([seed, at + i]), one, turns) for i, one in enumerate(group)]
        packed = packer.pack(shown, asked, independent=True)
        wanted = packed.targets >= 0
        missed = (answerer(packed).argmax(-1) != packed.targets[wanted]).float()
        wrong = torch.zeros(len(packed.asked)).index_add_(0, packed.owner[wanted], missed)
        which = [i for i, questions in enumerate(asked) for _ in questions]
        for one, index, misses in zip(packed.asked, which, wrong.tolist(), strict=True):
            outcomes.append(
                Outcome(
                    family=one.family,
                    picture=at + index,
                    size=shown[index].size,
                    features=len(shown[index].features),
                    right=misses == 0,
                )
            )
    return outcomes


def accuracy(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """Share of right answers per family, and over all questions as ``all``."""
    right: dict[str, list[bool]] = defaultdict(list)
    for one in outcomes:
        right[one.family].append(one.right)
        right["all"].append(one.right)
    return {family: float(np.mean(hits)) for family, hits in sorted(right.items())}


def intervals(outcomes: Sequence[Outcome], *, draws: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of :func:`accuracy`, resampling whole pictures."""
    families = sorted({one.family for one in outcomes} | {"all"})
    count = max(one.picture for one in outcomes) + 1
    hits, asked = (np.zeros((len(families), count)) for _ in range(2))
    for one in outcomes:
        for family in (one.family, "all"):
            hits[families.index(family), one.picture] += one.right
            asked[families.index(family), one.picture] += 1
    picks = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws).T  # [pictures, draws]
    ratios = (hits @ picks) / np.maximum(asked @ picks, 1)
    return {
        family: (float(np.quantile(row, 0.025)), float(np.quantile(row, 0.975)))
        for family, row in zip(families, ratios, strict=True)
    }


def mean_size(outcomes: Sequence[Outcome]) -> float:
    """Mean bytes of a picture."""
    return float(np.mean(list({one.picture: one.size for one in outcomes}.values())))
