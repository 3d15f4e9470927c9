"""One setting of a method that sends features: what it makes of a view.

Leaves the methods and their settings to `methods` and `index_methods`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tofc_lab.nano.answerer import CROP_CELLS, Reduce


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a method.

    `make` returns the reduction to a number of features; `identity` changes whenever that gives other results.
    """

    name: str
    features: int  # of a view at most
    make: Callable[[int], Reduce]
    identity: bytes = b""

    def reduce(self, crop: int | None = None) -> Reduce:
        """Return the reduction of a view, to at most `crop` features if it is a crop."""
        whole = self.make(self.features)
        if crop is None or crop >= self.features:
            return whole
        of_crop = self.make(crop)
        return lambda view: (of_crop if len(view) == CROP_CELLS else whole)(view)
