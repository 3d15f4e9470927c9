"""Residuals from predicted means, coded by stored tables: what entropy models of single components have in common.

Promises the same mean and table on every machine. Leaves predicting to the entropy models, tables to `tables`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tofc.codec.config import CodecConfig
from tofc.codec.integer_net import Ints
from tofc.errors import CodecError


@dataclass(frozen=True, kw_only=True)
class ResidualConfig(CodecConfig):
    """Sizes of a codec that codes residuals of components. Raises `CodecError` for values that are not allowed."""

    residual_bounds: ClassVar[Mapping[str, tuple[int, int]]] = {
        "residual_range": (1, 4095), "tables": (1, 4096), "fraction": (0, 8),
    }  # fmt: skip

    residual_range: int
    """R: residuals and predicted means are −R..R."""
    tables: int
    """T: number of probability tables of the components, 2^fraction for each scale."""
    fraction: int = 0
    """Predicted means are multiples of 2^−fraction steps; the fractional part selects the table."""

    def check_own(self) -> None:
        """Check the number of tables. Raises `CodecError`."""
        if self.tables % (1 << self.fraction):
            raise CodecError(f"codec.json: tables = {self.tables}; must be a multiple of {1 << self.fraction}")


def mean_and_table(c: ResidualConfig, place: Ints, scale: Ints) -> tuple[Ints, Ints]:
    """Turn predicted means, in units of 2^−fraction steps, and scales into whole means, −R..R, and tables, 0..T−1."""
    mean = np.minimum(np.maximum(place >> c.fraction, -c.residual_range), c.residual_range)
    scale = np.minimum(np.maximum(scale, 0), (c.tables >> c.fraction) - 1)  # np.clip takes longer to call
    return mean, scale << c.fraction | place & (1 << c.fraction) - 1
