"""Sizes of the selective hyperprior: what it adds to `codec.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tofc.codec.residuals import ResidualConfig


@dataclass(frozen=True, kw_only=True)
class SelectiveHyperpriorConfig(ResidualConfig):
    """Sizes of a codec with the selective hyperprior. Raises `CodecError` for values that are not allowed.

    >>> SelectiveHyperpriorConfig(feature_dim=8, components=8, hyper=2, synthesis_hidden=4, analysis_hidden=4,
    ...                           hidden=16, hyper_range=7, residual_range=7, tables=4).experts
    16
    """

    entropy_model = "selective-hyperprior"
    own_bounds: ClassVar = {
        "components": (1, 8192), "experts": (2, 256), "hyper": (1, 4096), "hyper_range": (1, 4095),
        "synthesis_hidden": (1, 4096), "analysis_hidden": (1, 4096), **ResidualConfig.residual_bounds,
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
