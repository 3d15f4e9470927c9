"""One setting of a method that sends features: what it makes of a view.

Leaves the methods and their settings to `methods` and `index_methods`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tofc_lab.nano.answerer import CROP_CELLS, SIDES, Reduce

VIEW_CELLS = SIDES[-1] ** 2  # features of the view of the whole picture, not merged


def setting_name(features: int | None, quality: int, crop: int | None = None) -> str:
    """Return the name of a setting of packets, with at most `crop` features of a crop (None: as of any view).

    >>> setting_name(None, 4, crop=4)
    '36 features, quality 4, 4 of a crop'
    """
    return of_crops(f"{features or VIEW_CELLS} features, quality {quality}", crop)


def of_crops(name: str, crop: int | None) -> str:
    """Return the name of a setting with at most `crop` features of a crop (None: as of any view)."""
    return name if crop is None else f"{name}, {crop} of a crop"


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
