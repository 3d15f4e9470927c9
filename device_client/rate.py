"""How many bytes a picture may take: a preset of the codec, a number of features, or a budget; and in which packets.

Promises that a picture's packets never take more than its budget, unless a server does not take packets of so many
views or bytes (an older one): each view is then sent alone, which takes more. The codec lists the rates to choose from:
the points on the convex hull of answer quality over bytes, in ascending order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tofc.errors import EncoderError, UsageError
from tofc.packet_limits import MOST_VIEWS, VIEWS_PER_PACKET

if TYPE_CHECKING:
    from tofc.codec.codec import Codec, CodedView
    from tofc.codec.config import CodecConfig, Rate


@dataclass(frozen=True, kw_only=True)
class RateChoice:
    """The user's choice; if everything is None, the codec's default preset."""

    preset: str | None = None
    features: int | None = None
    """The most features of a view, instead of the preset's."""
    budget_bytes: int | None = None
    """The most bytes of all packets of one picture."""
    views_per_packet: int = VIEWS_PER_PACKET
    """How many views of a picture leave together. More take fewer bytes; fewer reach the server earlier."""

    def __post_init__(self) -> None:
        if self.features is not None and self.features < 1:
            raise UsageError(f"--features must be 1 or more, got {self.features}; leave it out to use the preset's")
        if not 1 <= self.views_per_packet <= MOST_VIEWS:
            raise UsageError(f"--views-per-packet must be 1 to {MOST_VIEWS}, got {self.views_per_packet}")
        if self.budget_bytes is None:
            return
        if self.budget_bytes < 1:
            raise UsageError(f"--budget-bytes must be 1 or more, got {self.budget_bytes}")
        for option, value in (("--preset", self.preset), ("--features", self.features)):
            if value is not None:
                raise UsageError(f"{option} {value} and --budget-bytes exclude each other; leave one of them out")

    def rate(self, config: CodecConfig, *, crop: bool) -> Rate:
        """Return the rate where no budget is set: the most features of a view (None: not merged) and the quality.

        That of a `crop`, or else of the view of the whole picture. Raises UsageError for a preset that the codec does
        not have.
        """
        preset = config.preset if self.preset is None else self.preset
        if preset not in config.presets:
            raise UsageError(f"--preset {preset} is not known; this codec has {', '.join(config.presets)}")
        index = config.presets[preset]
        features, quality = config.rates[index]
        return _fewest(self.features or features, config.crop_limits[index] if crop else None), quality

    def setting(self, config: CodecConfig) -> str:
        """Return a text that is equal for two choices exactly if they give every picture the same views."""
        if self.budget_bytes is not None:
            return f"{self.budget_bytes} bytes, {self.views_per_packet} views a packet"
        features, quality = self.rate(config, crop=False)
        of_crop, _ = self.rate(config, crop=True)
        return f"{features or 'all'} features, {of_crop or 'all'} of a crop, quality {quality}"


DEFAULT = RateChoice()
BUDGET_SLACK = 1.4  # a suggested budget over the estimated bytes at the lowest rates: later views may need more


class RateController:
    """Chooses the rates of one picture's views, in order; `cells` are their numbers of features before merging.

    Of the bytes left a view may take the share that its cells are of all cells left. So the bytes that it does not use
    are shared by the views after it. A view that needs more than its share even at the lowest rate takes from theirs.
    A view's bytes are those that it adds to its packet.
    """

    def __init__(self, codec: Codec, choice: RateChoice, cells: Sequence[int]) -> None:
        self._codec, self._choice = codec, choice
        self._cells = list(cells)  # of the views to come
        self._left_bytes = choice.budget_bytes or 0
        self._lowest: list[int] = []  # bytes of each view so far at the lowest rate
        self._packet: list[CodedView] = []  # the views so far of the packet that the next view is for
        self._packet_bytes = 0

    def code(self, features: NDArray[np.float32]) -> CodedView:
        """Code the next view, with features [N, D], at its rate. Raises EncoderError if the budget is too small."""
        config = self._codec.config
        crop = len(self._cells) > 1  # the last view is the whole picture
        share_bytes = self._left_bytes * self._cells[0] // sum(self._cells)
        self._cells.pop(0)
        if self._choice.budget_bytes is None:
            return self._codec.code(features, *_capped(self._choice.rate(config, crop=crop), len(features)))
        rates = (
            (_fewest(most, limit if crop else None), quality)
            for (most, quality), limit in zip(config.rates, config.crop_limits, strict=True)
        )
        lowest, *others = dict.fromkeys(_capped(rate, len(features)) for rate in rates)
        at_lowest = self._codec.code(features, *lowest)
        self._lowest.append(self._added_bytes(at_lowest))
        for capped in reversed(others):
            coded = self._codec.code(features, *capped)
            n_bytes = self._added_bytes(coded)
            if n_bytes <= share_bytes:
                break
        else:  # the lowest rate, even if it takes bytes of the views to come
            coded, n_bytes = at_lowest, self._lowest[-1]
            if n_bytes > self._left_bytes:
                views = len(self._lowest) + len(self._cells)
                lowest_bytes = sum(self._lowest) + len(self._cells) * max(self._lowest)
                raise EncoderError(
                    f"--budget-bytes {self._choice.budget_bytes} is too little for this picture, which has {views} "
                    f"view{'s' * (views > 1)}; {ceil(lowest_bytes * BUDGET_SLACK / 10) * 10} should be enough"
                )
        self._left_bytes -= n_bytes
        self._packet.append(coded)
        self._packet_bytes += n_bytes
        if len(self._packet) == self._choice.views_per_packet:
            self._packet, self._packet_bytes = [], 0
        return coded

    def _added_bytes(self, view: CodedView) -> int:
        """Return how many bytes longer the packet is with this view."""
        return len(self._codec.write([*self._packet, view])) - self._packet_bytes


def _fewest(*limits: int | None) -> int | None:
    """Return the smallest of the limits that there are; None if there is none."""
    return min((limit for limit in limits if limit is not None), default=None)


def _capped(rate: Rate, total: int) -> tuple[int, int]:
    """Return the rate for a view of `total` features."""
    return min(rate[0] or total, total), rate[1]
