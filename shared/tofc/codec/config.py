"""`codec.json`: the sizes of a codec, its rates and presets: what all entropy models have in common.

Promises that every value of a loaded configuration is within its bounds. Leaves the tensors to `weights`, reading
the file to `files`, and the sizes of an entropy model to its folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

from tofc.errors import CodecError

FORMAT = 5
CONFIG_FILE = "codec.json"

#: (the most features that a view keeps, or None: no merging; quality)
Rate = tuple[int | None, int]


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Sizes of a codec: the content of `codec.json`. Raises `CodecError` for values that are not allowed.

    Each entropy model adds its own. The letters D, M, … are those in the shapes of `CodecWeights`.
    """

    #: the name of the entropy model in codec.json
    entropy_model: ClassVar[str]
    #: the bounds of the entropy model's own integers, by name
    own_bounds: ClassVar[Mapping[str, tuple[int, int]]] = {}

    feature_dim: int
    """D: numbers in a feature of the vision tower."""
    components: int
    """M: numbers that the transform gives for each feature."""
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
    crop_features: int | tuple[int | None, ...] | None = None
    """The most features that a crop keeps, at every rate or one for each of `rates`; None: as many as the rate."""
    hidden: int
    """H: width of the language model, for the grid embedding."""
    max_grid: int = 16
    """The largest grid side accepted, in cells."""

    def __post_init__(self) -> None:
        bounds = {
            "feature_dim": (1, 1 << 16), "components": (1, 1 << 16), "qualities": (1, 64), "neighbours": (1, 1024),
            "hidden": (1, 1 << 16), "max_grid": (1, 64),
        } | dict(self.own_bounds)  # fmt: skip
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise CodecError(f"codec.json: {name} = {value!r}; must be an integer from {least} to {most}")
        self._check_rates()
        self._check_crop_features()
        self.check_own()

    def check_own(self) -> None:
        """Check what the entropy model adds, beyond `own_bounds`. Raises `CodecError`."""

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

    def _check_crop_features(self) -> None:
        most = self.max_grid**2
        if isinstance(self.crop_features, list | tuple):
            object.__setattr__(self, "crop_features", tuple(self.crop_features))
        if len(self.crop_limits) != len(self.rates) or not all(_is_count(n, most) for n in self.crop_limits):
            raise CodecError(
                f"codec.json: crop_features = {self.crop_features!r}; must be null or 1 to {most}, or a list with one "
                f"of these for each rate, of which there are {len(self.rates)}"
            )

    @property
    def rate(self) -> Rate:
        """The rate of the default preset."""
        return self.rates[self.presets[self.preset]]

    @property
    def crop_limits(self) -> tuple[int | None, ...]:
        """`crop_features` at each of `rates`."""
        given = self.crop_features
        return given if isinstance(given, tuple) else (given,) * len(self.rates)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Make a configuration from the values in codec.json. Raises `CodecError`, also for unknown keys."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise CodecError(
                f"codec.json: unknown keys {unknown}; with the entropy model {cls.entropy_model} the keys are "
                f"{sorted(known)}"
            )
        try:
            return cls(**values)
        except TypeError as error:
            raise CodecError(f"codec.json: {error}: export the codec again") from error

    def text(self) -> str:
        """Return the content of `codec.json`, which `files.parse_config` reads."""
        return json.dumps({"format": FORMAT, "entropy_model": self.entropy_model} | asdict(self), indent=1) + "\n"


def _is_count(n: object, most: int) -> bool:
    """Whether n is None or 1 to `most`."""
    return n is None or (type(n) is int and 1 <= n <= most)
