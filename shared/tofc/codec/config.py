"""`codec.json`: the sizes of a codec, its rates and presets.

Promises that every value of a loaded configuration is within its bounds. Leaves the tensors to `weights`.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path

from tofc.errors import CodecError

FORMAT = 4
CONFIG_FILE = "codec.json"

#: (the most features that a view keeps, or None: no merging; quality)
Rate = tuple[int | None, int]


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Sizes of a codec: the content of `codec.json`. Raises `CodecError` for values that are not allowed.

    The letters D, M, … are those in the shapes of `CodecWeights`.

    >>> CodecConfig(feature_dim=8, components=4, slices=(1, 4), channels=2, context_hidden=8, hidden=16,
    ...             residual_range=7, tables=4).spans
    ((0, 1), (1, 4))
    """

    feature_dim: int
    """D: numbers in a feature of the vision tower."""
    components: int
    """M: numbers coded for each feature."""
    slices: tuple[int, ...]
    """Where each of the S slices of the components ends, ascending; the last is M."""
    channels: int
    """C: numbers in a feature's embedding, from which its neighbours are predicted."""
    context_hidden: int
    """F: hidden units of the context model."""
    reach: int = 2
    """Radius of the context model in cells: a cell has K = (2 reach + 1)² − 1 neighbours."""
    qualities: int = 1
    """Q: number of quality levels; 0 is the coarsest."""
    neighbours: int = 5
    """k of DPC-KNN, which merges features."""
    rates: tuple[Rate, ...] = ((None, 0),)
    """What an encoder with a budget of bytes chooses from, by ascending bytes."""
    presets: dict[str, int] = field(default_factory=lambda: {"only": 0})
    """Rates that have a name: name → index into `rates`."""
    preset: str = "only"
    """The preset used when the caller names none."""
    crop_features: int | None = None
    """The most features that a crop keeps, at every rate; None: as many as `rates` allows."""
    hidden: int
    """H: width of the language model, for the grid embedding."""
    residual_range: int
    """R: residuals and predicted means are −R..R."""
    tables: int
    """T: number of probability tables, 2^fraction for each scale."""
    fraction: int = 0
    """Predicted means are multiples of 2^−fraction steps; the fractional part selects the table."""
    max_grid: int = 16
    """The largest grid side accepted, in cells."""

    def __post_init__(self) -> None:
        bounds = {
            "feature_dim": (1, 1 << 16), "components": (1, 4096), "channels": (1, 256), "context_hidden": (1, 4096),
            "reach": (1, 4), "qualities": (1, 64), "neighbours": (1, 1024), "hidden": (1, 1 << 16),
            "residual_range": (1, 4095), "tables": (1, 4096), "max_grid": (1, 64), "fraction": (0, 8),
        }  # fmt: skip
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise CodecError(f"codec.json: {name} = {value!r}; must be an integer from {least} to {most}")
        self._check_rates()
        if not _is_count(self.crop_features, self.max_grid**2):
            raise CodecError(
                f"codec.json: crop_features = {self.crop_features!r}; must be null or 1 to {self.max_grid**2}"
            )
        if self.tables % (1 << self.fraction):
            raise CodecError(f"codec.json: tables = {self.tables}; must be a multiple of {1 << self.fraction}")
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

    def _check_rates(self) -> None:
        most = self.max_grid**2
        if not isinstance(self.rates, list | tuple) or not 1 <= len(self.rates) <= 64:
            raise CodecError(f"codec.json: rates = {self.rates!r}; must be a list of 1 to 64 [features, quality]")
        for rate in self.rates:
            valid = isinstance(rate, list | tuple) and len(rate) == 2 and type(rate[1]) is int
            if not valid or not 0 <= rate[1] < self.qualities or not _is_count(rate[0], most):
                raise CodecError(
                    f"codec.json: the rate {rate!r}; must be [features, quality]: features null or 1 to {most}, "
                    f"quality from 0 and below qualities = {self.qualities}"
                )
        object.__setattr__(self, "rates", tuple((n, quality) for n, quality in self.rates))
        if not isinstance(self.presets, dict) or not self.presets:
            raise CodecError(f"codec.json: presets = {self.presets!r}; must be names with indices into rates")
        for name, index in self.presets.items():
            if (
                not re.fullmatch("[a-z][a-z0-9-]{0,31}", name)
                or type(index) is not int
                or not 0 <= index < len(self.rates)
            ):
                raise CodecError(
                    f"codec.json: the preset {name!r}: {index!r}; must be a lower-case name (a-z, 0-9, -) and an "
                    f"index into rates, 0 to {len(self.rates) - 1}"
                )
        if self.preset not in self.presets:
            raise CodecError(f"codec.json: preset = {self.preset!r}; must be one of {', '.join(self.presets)}")

    @property
    def rate(self) -> Rate:
        """The rate of the default preset."""
        return self.rates[self.presets[self.preset]]

    @classmethod
    def parse(cls, text: str | bytes) -> CodecConfig:
        """Parse the content of codec.json. Raises `CodecError`, also for keys that this version does not know."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise CodecError(f"codec.json is not JSON ({error}): export the codec again") from error
        found = values.pop("format", None) if isinstance(values, dict) else None
        if found != FORMAT:
            raise CodecError(f"codec.json: format must be {FORMAT}, got {found!r}: export the codec with this version")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise CodecError(f"codec.json: unknown keys {unknown}; known are {sorted(known)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise CodecError(f"codec.json: {error}: export the codec again") from error

    @classmethod
    def load(cls, directory: Path) -> CodecConfig:
        """Read `codec.json` of a directory. Raises `CodecError`, and `FileNotFoundError` if the file is missing."""
        try:
            return cls.parse((directory / CONFIG_FILE).read_bytes())
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{directory} has no {CONFIG_FILE}; train a codec with `tofc-lab train-codec` and put it beside the "
                "weights with `tofc-lab split MODEL --codec FOLDER --out HALVES`"
            ) from None

    def text(self) -> str:
        """Return the content of `codec.json`, which `parse` reads."""
        return json.dumps({"format": FORMAT} | asdict(self), indent=1) + "\n"


def _is_count(n: object, most: int) -> bool:
    """Whether n is None or 1 to `most`."""
    return n is None or (type(n) is int and 1 <= n <= most)
