"""What a codec costs and spoils on pictures that it was not trained on.

Promises real packets: encoded, counted and decoded as on the two machines. Divergence is the mean over answer tokens
of KL(uncompressed ‖ through packets) in nats; an answer agrees when every token stays the likeliest one, which is
when greedy decoding gives the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lab.codec.team import Team
from lab.matching.pictures import Seen, Track
from lab.matching.source import Asked, merged, show
from lab.matching.teacher import Teacher, portions
from lab.rate_distortion.hull import bytes_at, hull
from shared.codec.codec import Codec
from shared.codec.weights import CodecConfig, Rate

#: a preset may lose so much agreement against the best rate
PRESETS = {"low": 0.12, "medium": 0.05, "high": 0.02, "max": 0.0}

AGREEMENT = (0.75, 0.8, 0.85, 0.9, 0.95)  # where two codecs are compared


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one rate, means over the held-out pictures."""

    features: int | None  # of a view at most; None: not merged
    quality: int
    bytes: float  # of a picture's packets
    divergence: float
    agreement: float


def counts(teacher: Teacher) -> list[int | None]:
    """To how many features a view is tried to be merged: not, and to shares of the largest grid."""
    cells = max(teacher.sides) ** 2
    return [None, *(n for share in (2 / 3, 4 / 9, 1 / 3, 1 / 5, 1 / 10) if (n := round(cells * share)) >= 4)]


@torch.no_grad()
def judge(
    teacher: Teacher,
    codec: Codec,
    seen: Sequence[Seen],
    asked: Asked,
    reference: Tensor,
    rates: Sequence[Rate],
    track: Track,
    team: Team,
) -> list[Cost]:
    """Every rate on every picture, shared out among the team; the same result for all its members.

    ``reference`` is the model's own grid table [G, H], the codec brings its own.
    """
    grid = grid_table(teacher, codec)
    totals = np.zeros((5, len(rates)))
    size, nats, tokens, agreed, questions = totals
    mine = seen[team.rank :: team.size]
    parts = [(one, some) for one in mine for some in portions(asked[one.digest])]
    for one, some in track(parts, len(parts)):
        whole = teacher.pack([merged(one)], [some])
        with teacher.plain():
            wanted = teacher.logits(whole, whole.features, reference).log_softmax(-1)
        likeliest, number = wanted.argmax(-1), len(some)
        views, share = one.views(), len(some) / len(asked[one.digest])
        for index, (n, quality) in enumerate(rates):
            packets = [codec.encode(view, min(n or len(view), len(view)), quality) for view in views]
            decoded = [codec.decode(packet) for packet in packets]
            shown = show(one, [d.features for d in decoded], [d.positions.astype(np.int64) for d in decoded])
            packed = teacher.pack([shown], [some])
            got = teacher.logits(packed, packed.features, grid).log_softmax(-1)
            missed = torch.zeros(number, device=got.device)
            missed.index_add_(0, packed.owner, (got.argmax(-1) != likeliest).float())
            size[index] += share * sum(map(len, packets))
            nats[index] += float(F.kl_div(got, wanted, log_target=True, reduction="sum"))
            tokens[index] += len(got)
            agreed[index] += int((missed == 0).sum())
            questions[index] += number
    size, nats, tokens, agreed, questions = team.total(totals)
    return [
        Cost(
            features=n,
            quality=quality,
            bytes=round(float(size[i] / len(seen)), 1),
            divergence=float(nats[i] / tokens[i]),
            agreement=float(agreed[i] / questions[i]),
        )
        for i, (n, quality) in enumerate(rates)
    ]


def grid_table(teacher: Teacher, codec: Codec) -> Tensor:
    """What a codec adds to projected features at every cell [G, H]."""
    rows = [codec.grid_embedding(side, np.arange(side * side)) for side in teacher.sides]
    return torch.from_numpy(np.concatenate(rows)).to(teacher.device)


def on_the_hull(config: CodecConfig, costs: Sequence[Cost]) -> CodecConfig:
    """The same codec with the rates that are worth having, and presets among them."""
    kept = [costs[i] for i in hull([one.bytes for one in costs], [-one.divergence for one in costs])]
    best = max(one.agreement for one in kept)
    presets = {
        name: next(i for i, one in enumerate(kept) if one.agreement >= best - loss) for name, loss in PRESETS.items()
    }
    presets["max"] = len(kept) - 1
    return replace(config, rates=tuple((one.features, one.quality) for one in kept), presets=presets, preset="high")


def delta_rate(found: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> float | None:
    """Bytes over those of ``other`` at equal divergence, both as ``rows`` gives them; None where they share none.

    Bjøntegaard's delta rate (VCEG-M33) as a ratio, with straight lines between the settings on each hull.
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
    """What ``other`` costs beside ``report``, both as JSON: bytes at equal divergence, and [other, this] where equally
    many answers agree, None where so many never do."""
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
    """For JSON."""
    return [asdict(one) for one in costs]
