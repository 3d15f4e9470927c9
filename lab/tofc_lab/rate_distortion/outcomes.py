"""Results of one way to send pictures: bytes, visual tokens and right answers of every picture, by family of questions.

Promises that a file of outcomes is either complete or absent. Leaves naming the files to `measure`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tofc_lab.nano.evaluate import Outcome
from tofc_lab.resume import save_arrays

OURS = "TOFC (this project)"
FAMILIES = ("exist", "count", "what", "side", "rel", "cmp", "read", "easy")

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """Results of P pictures in order."""

    size: Floats  # [P] bytes of the picture's packets or file
    tokens: Floats  # [P] visual tokens that the decoder saw
    right: Floats  # [P, families] number of right answers
    asked: Floats  # [P, families] number of questions

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Outcomes:
        """Sum up the outcomes of single questions by picture and family."""
        count = 1 + max(one.picture for one in outcomes)
        size, tokens = np.zeros(count), np.zeros(count)
        right, asked = np.zeros((count, len(FAMILIES))), np.zeros((count, len(FAMILIES)))
        for one in outcomes:
            size[one.picture], tokens[one.picture] = one.size, one.features
            right[one.picture, FAMILIES.index(one.family)] += one.right
            asked[one.picture, FAMILIES.index(one.family)] += 1
        return cls(size=size, tokens=tokens, right=right, asked=asked)

    @classmethod
    def load(cls, path: Path) -> Outcomes:
        """Load what `save` wrote."""
        with np.load(path) as stored:
            return cls(**{name: stored[name] for name in ("size", "tokens", "right", "asked")})

    def save(self, path: Path) -> None:
        """Write the file, complete or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_arrays(path, size=self.size, tokens=self.tokens, right=self.right, asked=self.asked)

    def accuracy(self, weights: Floats, family: str = "all") -> Floats:
        """Return the share of right answers [W] under `weights` [W, P] of the pictures."""
        column = slice(None) if family == "all" else [FAMILIES.index(family)]
        right, asked = self.right[:, column].sum(1), self.asked[:, column].sum(1)
        shares: Floats = (weights @ right) / np.maximum(weights @ asked, 1e-9)
        return shares

    def bytes(self, weights: Floats) -> Floats:
        """Return the mean bytes of a picture [W] under `weights` [W, P]."""
        mean: Floats = (weights @ self.size) / weights.sum(1)
        return mean
