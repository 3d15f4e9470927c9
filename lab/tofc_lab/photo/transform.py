"""The transform of photo's codec: two groups of components, so that each has codebooks of its own.

    feature ─┬─ which concept it shows, C numbers ───── all principal components ─────────┐
             └─ the rest ─ what the tower's readers read there ─ principal components ─┴─ y, equal spreads

What a cell shows and its colours, characters and weaker evidence hardly depend on each other: one codebook for all
would need a codeword for each pair. Promises components in this order. Leaves codebooks to `tofc_lab.codec.index`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tofc_lab.codec.index.transform import Transform
from tofc_lab.photo.tower import VISION, Reader

CONCEPT = int(VISION["code_width"])
REST = 48  # components of the rest
SPREAD = 1.0  # sum of the variances of each group
#: how much a reader counts in the rest
NAMES, COLOURS, CHARACTERS = 0.3, 1.0, 0.2


def fit(x: Tensor, reader: Reader) -> Transform:
    """Fit the transform to features x [T, D]."""
    mean = x.mean(0)
    centred = (x - mean).double()
    heads = ((NAMES, reader.names), (COLOURS, reader.colours), (CHARACTERS, reader.characters))
    read = torch.cat([share * (head.weight - head.weight.mean(0))[:, CONCEPT:] for share, head in heads])
    rest = _components(centred[:, CONCEPT:], read.double(), REST)
    concept = _components(centred[:, :CONCEPT], torch.eye(CONCEPT, dtype=torch.float64), CONCEPT)
    analysis = torch.block_diag(concept, rest)  # [M, D]
    y = centred @ analysis.T
    synthesis = torch.linalg.lstsq(y, centred).solution.T
    return Transform(mean, analysis.float(), synthesis.float())


def _components(x: Tensor, read: Tensor, count: int) -> Tensor:
    """Return directions [count, D]: the principal components of what is read of x [T, D], of `SPREAD` together."""
    seen = x @ read.T
    variance, vectors = torch.linalg.eigh(seen.T @ seen / len(seen))
    found: Tensor = (SPREAD / variance[-count:].sum()).sqrt() * vectors[:, -count:].flip(1).T @ read
    return found
