"""Sizes of the selective hyperprior: what it adds to `codec.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tofc.codec.config import CodecConfig
from tofc.errors import CodecError


@dataclass(frozen=True, kw_only=True)
class SelectiveHyperpriorConfig(CodecConfig):
    """Sizes of a codec with the selective hyperprior. Raises `CodecError` for values that are not allowed.

    >>> SelectiveHyperpriorConfig(feature_dim=8, components=8, hyper=2, synthesis_hidden=4, analysis_hidden=4,
    ...                           hidden=16, hyper_range=7, residual_range=7, tables=4).experts
    16
    """

    entropy_model = "selective-hyperprior"
    own_bounds: ClassVar = {
        "components": (1, 8192), "experts": (2, 256), "hyper": (1, 4096), "hyper_range": (1, 4095),
        "synthesis_hidden": (1, 4096), "analysis_hidden": (1, 4096), "residual_range": (1, 4095), "tables": (1, 4096),
        "fraction": (0, 8),
    }  # fmt: skip

    experts: int = 16
    """E: number of experts, each a hyper synthesis h_s."""
    hyper: int
    """Z: numbers in a feature's z; D / 16 as published."""
    hyper_range: int
    """R_z: the numbers of ẑ are −R_z..R_z."""
    synthesis_hidden: int
    """F: hidden units of each expert."""
    analysis_hidden: int
    """A: hidden units of the hyper analysis h_a; encoder only."""
    residual_range: int
    """R: residuals and predicted means are −R..R."""
    tables: int
    """T: number of tables for the components, 2^fraction for each scale."""
    fraction: int = 0
    """Predicted means are multiples of 2^−fraction steps; the fractional part selects the table."""

    def check_own(self) -> None:
        """Check the number of tables. Raises `CodecError`."""
        if self.tables % (1 << self.fraction):
            raise CodecError(f"codec.json: tables = {self.tables}; must be a multiple of {1 << self.fraction}")
