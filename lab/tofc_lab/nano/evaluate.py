"""Accuracy by family of questions, with confidence intervals, for any way of merging or coding the features.

An answer counts as right if each of its tokens, including the end, is the decoder's most likely one: that is, if greedy
decoding gives this answer. Leaves training to `decoder`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tofc.codec.codec import Codec
from tofc_lab.nano.answerer import CROP_CELLS, Answerer, Reduce, ask, visual_input
from tofc_lab.nano.costs import CodedCost
from tofc_lab.nano.features import CachedPicture
from tofc_lab.nano.packing import Packer, QuestionAnswer


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One question: its family, its picture and that picture's cost, and whether the answer was right."""

    family: str
    picture: int
    size: float  # bytes of the picture's packets or file
    features: int  # visual features the decoder saw
    right: bool


def coded(codec: Codec, n: int | None, quality: int, crop: int | None = None) -> Reduce:
    """Return a function that sends a view through a packet, merged to at most `n` features, and `crop` of a crop.

    None: not merged, and a crop as any view.
    """

    def reduce(view):  # type: ignore[no-untyped-def]  # typed by `Reduce`
        most = crop if crop is not None and len(view) == CROP_CELLS else len(view)
        sent = codec.code(view, min(n or len(view), most), quality)
        decoded = codec.decode(codec.write([sent]))
        return decoded.features, decoded.positions, CodedCost(codec, sent)

    return reduce


def coded_at(codec: Codec, index: int) -> Reduce:
    """Return a function that sends a view through a packet at the codec's rate with this index."""
    return coded(codec, *codec.config.rates[index], codec.config.crop_limits[index])


def questions_about(index: int, picture: CachedPicture, turns: int, seed: int = 5) -> list[QuestionAnswer]:
    """Return the questions that `score` asks about the picture with this index."""
    return ask(np.random.default_rng([seed, index]), picture, turns)


@torch.no_grad()
def score(
    answerer: Answerer,
    packer: Packer,
    pictures: Sequence[CachedPicture],
    reduce: Reduce,
    *,
    turns: int = 10,
    seed: int = 5,
    batch: int = 25,
    chosen: Sequence[list[QuestionAnswer]] | None = None,
) -> list[Outcome]:
    """Ask `turns` questions about each picture; which ones depends only on `seed` and the picture's index.

    With `chosen` ask these instead.
    """
    outcomes: list[Outcome] = []
    for at in range(0, len(pictures), batch):
        group = pictures[at : at + batch]
        shown = [visual_input(one, reduce) for one in group]
        if chosen is None:
            asked = [questions_about(at + i, one, turns, seed) for i, one in enumerate(group)]
        else:
            asked = list(chosen[at : at + batch])
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
    """Return the share of right answers by family, and of all questions as `all`."""
    right: dict[str, list[bool]] = defaultdict(list)
    for one in outcomes:
        right[one.family].append(one.right)
        right["all"].append(one.right)
    return {family: float(np.mean(hits)) for family, hits in sorted(right.items())}


def intervals(outcomes: Sequence[Outcome], *, draws: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Return 95 % bootstrap intervals of `accuracy`, resampling whole pictures."""
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
    """Return the mean bytes of a picture."""
    return float(np.mean(list({one.picture: one.size for one in outcomes}.values())))
