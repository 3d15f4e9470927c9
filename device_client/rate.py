"""How many bytes a picture may take: a preset of the codec, a number of features, or a budget.

Promises that a picture's packets never take more than its budget. Leaves to the codec which rates there are: the
points on the hull of answers over bytes, in ascending order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from device_client.errors import EncoderError, UseError

if TYPE_CHECKING:
    from shared.codec.codec import Codec
    from shared.codec.weights import CodecConfig, Rate


@dataclass(frozen=True, kw_only=True)
class RateChoice:
    """What the user wants; everything None: the codec's default preset."""

    preset: str | None = None
    features: int | None = None  # of a view at most, instead of the preset's
    budget: int | None = None  # bytes of all packets of a picture

    def __post_init__(self) -> None:
        if self.features is not None and self.features < 1:
            raise UseError(f"--features must be 1 or more, got {self.features}; leave it out for the preset's")
        if self.budget is None:
            return
        if self.budget < 1:
            raise UseError(f"--budget-bytes must be 1 or more, got {self.budget}")
        for option, value in (("--preset", self.preset), ("--features", self.features)):
            if value is not None:
                raise UseError(f"{option} {value} and --budget-bytes exclude each other; leave one of them out")

    def of(self, config: CodecConfig) -> Rate:
        """Features of a view at most (None: not merged) and quality, without a budget. Raises UseError."""
        preset = config.preset if self.preset is None else self.preset
        if preset not in config.presets:
            raise UseError(f"--preset {preset} is not known; this codec has {', '.join(config.presets)}")
        features, quality = config.rates[config.presets[preset]]
        return self.features or features, quality

    def setting(self, config: CodecConfig) -> str:
        """Two choices with one setting give one picture the same packets."""
        if self.budget is not None:
            return f"{self.budget} bytes"
        features, quality = self.of(config)
        return f"{features or 'all'} features, quality {quality}"


DEFAULT = RateChoice()
ROOM = 1.4  # what a budget needs over the sum of the lowest rates, since views are paid for before all are seen


class Spending:
    """The rates of one picture's views, in order; ``cells`` are their numbers of features before merging.

    A view may take what is left in proportion to its cells among those to come, so that what one leaves is shared by
    the others. One that needs more even at the lowest rate borrows from them.
    """

    def __init__(self, codec: Codec, choice: RateChoice, cells: Sequence[int]) -> None:
        self._codec, self._choice = codec, choice
        self._cells = list(cells)  # of the views to come
        self._left = choice.budget or 0
        self._least: list[int] = []  # bytes of each view at the lowest rate

    def next(self, features: NDArray[np.float32]) -> Rate:
        """The rate of the next view, whose features are [N, D]. Raises EncoderError when it cannot be paid for."""
        most = len(features)
        if len(self._cells) > 1:  # a crop: the view of the whole picture is the last
            most = min(most, self._codec.config.crop_features or most)
        share = self._left * self._cells[0] // sum(self._cells)
        self._cells.pop(0)
        if self._choice.budget is None:
            return self._capped(self._choice.of(self._codec.config), most)
        lowest, *others = dict.fromkeys(self._capped(rate, most) for rate in self._codec.config.rates)
        self._least.append(len(self._codec.encode(features, *lowest)))
        for capped in reversed(others):
            size = len(self._codec.encode(features, *capped))
            if size <= share:
                break
        else:  # the lowest, on the others' account
            capped, size = lowest, self._least[-1]
            if size > self._left:
                views = len(self._least) + len(self._cells)
                least = sum(self._least) + len(self._cells) * max(self._least)
                raise EncoderError(
                    f"--budget-bytes {self._choice.budget} is too little for this picture, which has {views} "
                    f"view{'s' * (views > 1)}; {ceil(least * ROOM / 10) * 10} should be enough"
                )
        self._left -= size
        return capped

    @staticmethod
    def _capped(rate: Rate, most: int) -> tuple[int, int]:
        return min(rate[0] or most, most), rate[1]
