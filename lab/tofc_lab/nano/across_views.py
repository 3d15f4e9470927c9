"""What crops' indices would cost less if their coder saw the global view: an experiment, not a part of the codec.

    crop's index ─ the codec's own probability p ──────────────┐
    global view's index at the same place ─ counts ─ p(k | g) ─┴─ (1 − w(g)) p + w(g) p(k | g) ─→ bits

Counts and weights w(g) are fitted on the first pictures, the weights by expectation and maximisation with each feature
left out of its own count; the bits are those of the other pictures. Promises a mixture that a decoder could follow.
Leaves what a net could learn beyond counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tofc.codec.codec import Codec
from tofc_lab.nano.features import CachedPicture
from tofc_lab.progress import Progress

DOUBT = 20.0  # pseudo-counts of the overall shares in p(k | g), and of the prior in w(g)
PRIOR = 0.05  # of w
ROUNDS = 30


@dataclass(frozen=True, kw_only=True, eq=False)
class CropFeatures:
    """Features of crops: their indices, the global view's at the same place, and what they cost now."""

    index: NDArray[np.int64]  # [T]
    seen: NDArray[np.int64]  # [T]
    bits: NDArray[np.float64]  # [T]
    picture: NDArray[np.int64]  # [T]


def crop_features(codec: Codec, pictures: Sequence[CachedPicture], quality: int, progress: Progress) -> CropFeatures:
    """Code all views that are not merged, and return the first indices of those in crops."""
    parts: list[tuple[NDArray[Any], ...]] = []
    for number, picture in progress(list(enumerate(pictures)), len(pictures)):
        if not picture.rows:
            continue
        *crops, whole = (codec.explain(view, len(view), quality) for view in picture.views())
        assert whole.indices is not None
        side = round(len(whole.indices) ** 0.5)
        for place, crop in enumerate(crops):
            assert crop.indices is not None and crop.stage_bits is not None
            cells = round(len(crop.indices) ** 0.5)
            (row, column), (y, x) = divmod(place, picture.columns), np.divmod(np.arange(cells**2), cells)
            above = ((cells * row + y + 0.5) / (cells * picture.rows) * side).astype(np.int64)
            left = ((cells * column + x + 0.5) / (cells * picture.columns) * side).astype(np.int64)
            seen = whole.indices[above * side + left, 0]
            parts.append((crop.indices[:, 0], seen, crop.stage_bits[:, 0], np.full(cells**2, number)))
    index, seen, bits, owner = (np.concatenate(one) for one in zip(*parts, strict=True))
    return CropFeatures(index=index, seen=seen, bits=bits, picture=owner)


def mixture(found: CropFeatures, codewords: int, fitted: int) -> dict[str, float]:
    """Fit the mixture to the pictures before `fitted`; return bytes of the crops of a picture after them, both ways."""
    early = found.picture < fitted
    index, seen, own = found.index[early], found.seen[early], 2.0 ** -found.bits[early]
    counts = np.zeros((codewords, codewords), np.float32)
    np.add.at(counts, (seen, index), 1)
    total, shares = counts.sum(1), np.bincount(index, minlength=codewords) + PRIOR
    shares = shares / shares.sum()
    told = (np.maximum(counts[seen, index] - 1, 0) + DOUBT * shares[index]) / (total[seen] - 1 + DOUBT)
    weight = np.full(codewords, PRIOR)
    for _ in range(ROUNDS):
        part = weight[seen] * told
        credit = np.bincount(seen, part / (part + (1 - weight[seen]) * own), minlength=codewords)
        weight = (credit + DOUBT * PRIOR) / (np.bincount(seen, minlength=codewords) + DOUBT)
    index, seen, bits = found.index[~early], found.seen[~early], found.bits[~early]
    told = (counts[seen, index] + DOUBT * shares[index]) / (total[seen] + DOUBT)
    mixed = -np.log2(weight[seen] * told + (1 - weight[seen]) * 2.0**-bits)
    pictures = len(np.unique(found.picture[~early]))
    return {
        "pictures": pictures,
        "bytes_now": round(float(bits.sum()) / 8 / pictures, 2),
        "bytes_with_the_global_view": round(float(mixed.sum()) / 8 / pictures, 2),
    }


def measure(
    codec: Codec, pictures: Sequence[CachedPicture], qualities: Sequence[int], progress: Progress
) -> list[dict[str, float]]:
    """Return the bytes of crops at each quality; four fifths of the pictures are for fitting."""
    (codewords, *_) = codec.config.codewords  # type: ignore[attr-defined]  # of a codec of indices
    return [
        {"quality": one} | mixture(crop_features(codec, pictures, one, progress), codewords, len(pictures) * 4 // 5)
        for one in qualities
    ]
