"""The integers of one view in coding order: what the range coder writes and reads.

Promises that encoder and decoder build them in the same way. Leaves choosing the integers to `rdo_quantiser`, and
their predictions to `context_model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tofc.codec.context.context_model import CodingStep
from tofc.codec.integer_net import Floats, Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class ContextSymbols:
    """The quantised components of n features; and of each number, in coding order, its residual and its table."""

    quality: int  # one for the whole view
    q: Ints  # [n, M]
    feature: Ints  # [n · M], the row of q that each number belongs to
    residual: Ints  # [n · M], −R..R
    table: Ints  # [n · M], 0..T−1

    @classmethod
    def of(cls, quality: int, q: Floats, steps: Sequence[tuple[CodingStep, Ints]]) -> ContextSymbols:
        """Join the residuals of all coding steps, in order."""
        return cls(
            quality=quality,
            q=q.astype(np.int64),
            feature=np.concatenate([np.repeat(step.rows, step.last - step.first) for step, _ in steps]),
            residual=np.concatenate([residual.ravel() for _, residual in steps]),
            table=np.concatenate([step.table.ravel() for step, _ in steps]),
        )
