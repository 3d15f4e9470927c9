"""Sizes of the context model: what it adds to `codec.json`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from tofc.codec.residuals import ResidualConfig
from tofc.errors import CodecError


@dataclass(frozen=True, kw_only=True)
class ContextConfig(ResidualConfig):
    """Sizes of a codec with the context model. Raises `CodecError` for values that are not allowed.

    >>> ContextConfig(feature_dim=8, components=4, slices=(1, 4), channels=2, context_hidden=8, hidden=16,
    ...               residual_range=7, tables=4).spans
    ((0, 1), (1, 4))
    """

    entropy_model = "context"
    own_bounds: ClassVar = {
        "components": (1, 4096), "channels": (1, 256), "context_hidden": (1, 4096), "reach": (1, 4),
        **ResidualConfig.residual_bounds,
    }  # fmt: skip

    slices: tuple[int, ...]
    """Where each of the S slices of the components ends, ascending; the last is M."""
    channels: int
    """C: numbers in a feature's embedding, from which its neighbours are predicted."""
    context_hidden: int
    """F: hidden units of the context model."""
    reach: int = 2
    """Radius of the context model in cells: a cell has K = (2 reach + 1)² − 1 neighbours."""

    def check_own(self) -> None:
        """Check tables and slices. Raises `CodecError`."""
        super().check_own()
        ends = self.slices
        valid = isinstance(ends, list | tuple) and all(type(end) is int for end in ends)
        if not valid or [*ends] != sorted({*ends}) or not ends or ends[0] < 1 or ends[-1] != self.components:
            raise CodecError(
                f"codec.json: slices = {ends!r}; must be the ascending ends of the slices of components, the last "
                f"{self.components}"
            )
        object.__setattr__(self, "slices", tuple(ends))

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """(first, last + 1) component of each slice."""
        return tuple(pairwise((0, *self.slices)))
