"""Bytes, divergence and agreement of a codec on pictures that it was not trained on.

Promises real packets: encoded, counted and decoded as on the two machines. Divergence is the mean over answer tokens
of KL(uncompressed ‖ through packets) in nats. An answer agrees when each of its tokens is still the most likely one,
so that greedy decoding gives the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tofc.codec.codec import Codec
from tofc.codec.config import CodecConfig, Rate
from tofc_lab.codec.distributed import ProcessGroup
from tofc_lab.distillation.pictures import StoredPicture
from tofc_lab.distillation.source import Answers, merged, picture_input
from tofc_lab.distillation.teacher import Teacher, portions
from tofc_lab.progress import Progress
from tofc_lab.rate_distortion.hull import bytes_at, hull

#: agreement that a preset may lose against the best rate
PRESETS = {"low": 0.12, "medium": 0.05, "high": 0.02, "max": 0.0}

AGREEMENT = (0.75, 0.8, 0.85, 0.9, 0.95)  # shares of agreeing answers at which the bytes of two codecs are compared


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one rate costs in bytes and in answers: means over the held-out pictures."""

    features: int | None  # of a view at most; None: not merged
    quality: int
    bytes: float  # of all packets of a picture
    divergence: float
    agreement: float


def feature_counts(teacher: Teacher) -> list[int | None]:
    """Return the numbers of features that are tried for a view: None (not merged), and shares of the largest grid."""
    cells = max(teacher.sides) ** 2
    return [None, *(n for share in (2 / 3, 4 / 9, 1 / 3, 1 / 5, 1 / 10) if (n := round(cells * share)) >= 4)]


@torch.no_grad()
def evaluate(
    teacher: Teacher,
    codec: Codec,
    stored: Sequence[StoredPicture],
    answers: Answers,
    reference: Tensor,
    rates: Sequence[Rate],
    progress: Progress,
    processes: ProcessGroup,
) -> list[Cost]:
    """Measure every rate on every picture. Processes share the pictures, and all return the same result.

    `reference` is the model's own grid table [G, H]; decoded features use the codec's.
    """
    grid = grid_table(teacher, codec)
    totals = np.zeros((5, len(rates)))
    size, nats, tokens, agreed, questions = totals
    mine = stored[processes.rank :: processes.size]
    parts = [(picture, asked) for picture in mine for asked in portions(answers[picture.digest])]
    for picture, asked in progress(parts, len(parts)):
        whole = teacher.pack([merged(picture)], [asked])
        with teacher.plain():
            wanted = teacher.logits(whole, whole.features, reference).log_softmax(-1)
        likeliest, number = wanted.argmax(-1), len(asked)
        views, share = picture.views(), len(asked) / len(answers[picture.digest])
        for index, (n, quality) in enumerate(rates):
            packets = codec.packets([codec.code(view, min(n or len(view), len(view)), quality) for view in views])
            decoded = [one for packet in packets for one in codec.decode_views(packet)]
            cells = [one.positions.astype(np.int64) for one in decoded]
            packed = teacher.pack([picture_input(picture, [one.features for one in decoded], cells)], [asked])
            got = teacher.logits(packed, packed.features, grid).log_softmax(-1)
            missed = torch.zeros(number, device=got.device)
            missed.index_add_(0, packed.owner, (got.argmax(-1) != likeliest).float())
            size[index] += share * sum(map(len, packets))
            nats[index] += float(F.kl_div(got, wanted, log_target=True, reduction="sum"))
            tokens[index] += len(got)
            agreed[index] += int((missed == 0).sum())
            questions[index] += number
    size, nats, tokens, agreed, questions = processes.sum(totals)
    return [
        Cost(
            features=n,
            quality=quality,
            bytes=round(float(size[i] / len(stored)), 1),
            divergence=float(nats[i] / tokens[i]),
            agreement=float(agreed[i] / questions[i]),
        )
        for i, (n, quality) in enumerate(rates)
    ]


def grid_table(teacher: Teacher, codec: Codec) -> Tensor:
    """Return the grid table [G, H] of a codec, whose rows are added to projected features by cell."""
    rows = [codec.grid_embedding(side, np.arange(side * side)) for side in teacher.sides]
    return torch.from_numpy(np.concatenate(rows)).to(teacher.device)


def on_the_hull(config: CodecConfig, costs: Sequence[Cost]) -> CodecConfig:
    """Return the configuration with only those rates of `costs` that are on the hull, and presets among them."""
    kept = [costs[i] for i in hull([one.bytes for one in costs], [-one.divergence for one in costs])]
    best = max(one.agreement for one in kept)
    presets = {
        name: next(i for i, one in enumerate(kept) if one.agreement >= best - loss) for name, loss in PRESETS.items()
    }
    presets["max"] = len(kept) - 1
    return replace(config, rates=tuple((one.features, one.quality) for one in kept), presets=presets, preset="high")


def delta_rate(found: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> float | None:
    """Return bytes over those of `other` at equal divergence; None if their ranges of divergence do not overlap.

    Both are as `rows` returns them. This is Bjøntegaard's delta rate (VCEG-M33) as a ratio, with straight lines between
    the settings on each hull.
    """
    sizes = [[row["bytes"] for row in one] for one in (found, other)]
    values = [[-float(np.log(row["divergence"])) for row in one] for one in (found, other)]
    least, most = max(map(min, values)), min(map(max, values))
    if least >= most:
        return None
    at = [
        [bytes_at(size, value, wanted) or np.nan for wanted in np.linspace(least, most, 100)]
        for size, value in zip(sizes, values, strict=True)
    ]
    return float(np.exp(np.mean(np.log(at[0]) - np.log(at[1]))))


def compare(report: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Compare two reports: bytes of `other` over those of `report` at equal divergence, and bytes at equal agreement.

    The latter are pairs [other, report], with None for a codec that does not reach this agreement.
    """
    tables = (other["rates"], report["rates"])
    ratio = delta_rate(*tables)
    return {
        "report": other,
        "bytes at equal divergence": None if ratio is None else round(ratio, 3),
        "bytes where so many answers agree": {
            str(share): [
                None if found is None else round(found, 1)
                for table in tables
                for found in [bytes_at([row["bytes"] for row in table], [row["agreement"] for row in table], share)]
            ]
            for share in AGREEMENT
        },
    }


def rows(costs: Sequence[Cost]) -> list[dict[str, Any]]:
    """Return the costs as JSON objects."""
    return [asdict(one) for one in costs]
