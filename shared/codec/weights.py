"""The codec's two files: ``codec.json`` (sizes) and ``codec.safetensors`` (numbers).

Promises that a loaded codec has every tensor in its shape, type and range, so that nothing after this
checks again. Leaves to ``lab`` how the numbers are found.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from shared.codec.tables import problem_with

FORMAT = 4
STAGES = 2  # of a view's cells
ACTIVATION_BITS, WEIGHT_BITS = 8, 10  # of the context model, behind the binary point
ACTIVATION_MAX = 4095
CONFIG_FILE, TENSOR_FILE = "codec.json", "codec.safetensors"
_GRID_PREFIX = "grid_embedding."

AnyArray = NDArray[Any]
#: features of a view at most (None: not merged), quality
Rate = tuple[int | None, int]


class CodecError(ValueError):
    """A codec's files contradict themselves or this version."""


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Sizes of a codec. Letters are those of the shapes in ``CodecWeights``.

    >>> CodecConfig(feature_dim=8, components=4, slices=(1, 4), channels=2, context_hidden=8, hidden=16,
    ...             residual_range=7, tables=4).spans
    ((0, 1), (1, 4))
    """

    feature_dim: int  # D
    components: int  # M: numbers coded per feature
    slices: tuple[int, ...]  # where each slice of the components ends; the last is M. S: how many
    channels: int  # C: of a feature as its neighbours see it
    context_hidden: int  # F: hidden units of the context model
    reach: int = 2  # of the context model, in cells: K = (2 reach + 1)² − 1 of them lie around one
    qualities: int = 1  # Q: levels of rate, the coarsest first
    neighbours: int = 5  # of DPC-KNN
    rates: tuple[Rate, ...] = ((None, 0),)  # by ascending bytes, on the hull of answers over bytes
    presets: dict[str, int] = field(default_factory=lambda: {"only": 0})  # name → index of its rate
    preset: str = "only"  # taken when the caller does not say
    crop_features: int | None = None  # of a crop at most, at every rate: crops add detail to a view of the whole
    hidden: int  # H: of the language model, for the grid embedding
    residual_range: int  # R: residual symbols and predicted means lie in −R..R
    tables: int  # T: tables for residuals, 2^fraction for each scale
    fraction: int = 0  # predicted means are multiples of 2^−fraction: what is left of a mean chooses the table
    max_grid: int = 16  # the largest grid side taken from anyone

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
        whole = isinstance(ends, list | tuple) and all(type(end) is int for end in ends)
        if not whole or [*ends] != sorted({*ends}) or not ends or ends[0] < 1 or ends[-1] != self.components:
            raise CodecError(
                f"codec.json: slices = {ends!r}; must be the ascending ends of the slices of components, the last "
                f"{self.components}"
            )
        object.__setattr__(self, "slices", tuple(ends))

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """First component of each slice, and the one behind its last."""
        return tuple(pairwise((0, *self.slices)))

    def _check_rates(self) -> None:
        most = self.max_grid**2
        if not isinstance(self.rates, list | tuple) or not 1 <= len(self.rates) <= 64:
            raise CodecError(f"codec.json: rates = {self.rates!r}; must be a list of 1 to 64 [features, quality]")
        for rate in self.rates:
            whole = isinstance(rate, list | tuple) and len(rate) == 2 and all(type(one) is int for one in rate[1:])
            if not whole or not 0 <= rate[1] < self.qualities or not _is_count(rate[0], most):
                raise CodecError(
                    f"codec.json: the rate {rate!r}; must be [features, quality]: null or 1 to {most}, and below "
                    f"qualities = {self.qualities}"
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
                    f"codec.json: the preset {name!r}: {index!r}; must be a lower-case word and an index below "
                    f"{len(self.rates)}"
                )
        if self.preset not in self.presets:
            raise CodecError(f"codec.json: preset = {self.preset!r}; must be one of {', '.join(self.presets)}")

    @property
    def rate(self) -> Rate:
        """What is coded when the caller does not say."""
        return self.rates[self.presets[self.preset]]

    @classmethod
    def parse(cls, text: str | bytes) -> CodecConfig:
        """The content of codec.json. Raises ``CodecError``, also for keys this version does not know."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise CodecError(f"codec.json is not JSON ({error}): export the codec again") from error
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise CodecError(f"codec.json: format must be {FORMAT}: export the codec with this version")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise CodecError(f"codec.json: unknown keys {unknown}; known are {sorted(known)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise CodecError(f"codec.json: {error}: export the codec again") from error

    @classmethod
    def load(cls, directory: Path) -> CodecConfig:
        """codec.json of a directory. Raises ``CodecError``; a missing file is a ``FileNotFoundError``."""
        try:
            return cls.parse((directory / CONFIG_FILE).read_bytes())
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{directory} has no {CONFIG_FILE}; a checkpoint gets a codec from `tofc-lab train-codec`, and has it "
                "beside its weights after `tofc-lab split MODEL --codec FOLDER --out HALVES`"
            ) from None

    def text(self) -> str:
        """What ``parse`` reads."""
        return json.dumps({"format": FORMAT} | asdict(self), indent=1) + "\n"


def _is_count(n: object, most: int) -> bool:
    return n is None or (type(n) is int and 1 <= n <= most)


@dataclass(frozen=True, kw_only=True, eq=False)
class CodecWeights:
    """Every number of a codec; read-only arrays. Raises ``CodecError`` when one does not fit.

    ``x̂ = mean + synthesis @ (q · step)`` with the steps of a quality; the rest is the context model's (``context``).
    """

    config: CodecConfig
    mean: NDArray[np.float32]  # [D]
    analysis: NDArray[np.float32]  # [M, D]
    step: NDArray[np.float32]  # [Q, M], positive
    bit_price: NDArray[np.float32]  # [Q], not negative: squared steps that an encoder gives for a bit
    synthesis: NDArray[np.float32]  # [D, M]
    embed_w: NDArray[np.int16]  # [C, M]
    embed_b: NDArray[np.int32]  # [Q, C]
    around_w: NDArray[np.int16]  # [F, K (C + 1)]: of each cell around, its channels, then whether it is there
    own_w: NDArray[np.int16]  # [S, F, M]; 0 from a slice's first component on
    own_b: NDArray[np.int32]  # [Q, stages, S, F]
    mid_w: NDArray[np.int16]  # [S, F, F]
    mid_b: NDArray[np.int32]  # [Q, S, F]
    out_w: NDArray[np.int16]  # [2, M, F]: of each component's mean, then of its scale
    out_b: NDArray[np.int32]  # [Q, 2, M]
    y_tables: NDArray[np.uint32]  # [T, 2 R + 2], cumulative
    grid_embedding: dict[int, AnyArray] = field(default_factory=dict)  # grid side G → [G², H], f32 or f16

    def __post_init__(self) -> None:
        c = self.config
        shapes = _shapes(c)
        for side in self.grid_embedding:
            if not 1 <= side <= c.max_grid:
                raise CodecError(f"{_GRID_PREFIX}{side}: grid sides go from 1 to max_grid = {c.max_grid}")
            shapes[f"{_GRID_PREFIX}{side}"] = ("float32 float16", (side * side, c.hidden))
        for name, array in self._arrays().items():
            dtypes, shape = shapes[name]
            if array.dtype.name not in dtypes.split() or array.shape != shape:
                raise CodecError(
                    f"{name} is {array.dtype} {array.shape}; must be {dtypes.replace(' ', ' or ')} {shape}"
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise CodecError(f"{name} holds NaN or infinity: train or export again")
            if array.dtype == np.uint32 and (problem := problem_with(array)):
                raise CodecError(f"{name}: {problem}")
            array.setflags(write=False)
        if (self.step <= 0).any():
            raise CodecError("step: every quantisation step must be positive")
        if (self.bit_price < 0).any():
            raise CodecError("bit_price: no bit may have a negative price")
        if any(self.own_w[index, :, first:].any() for index, (first, _) in enumerate(c.spans)):
            raise CodecError("own_w: a slice of components can only depend on those before it")

    @classmethod
    def load(cls, directory: Path) -> CodecWeights:
        """Reads both files of a directory. Raises ``CodecError``; a missing file is a ``FileNotFoundError``."""
        config = CodecConfig.load(directory)
        try:
            tensors = load_file(directory / TENSOR_FILE)
        except FileNotFoundError:
            raise
        except MemoryError:  # of this machine, not of the file
            raise
        except Exception as error:  # safetensors has its own exception type, which is no public name
            raise CodecError(f"{directory / TENSOR_FILE} cannot be read ({error}): export the codec again") from error
        return cls.of(config, tensors)

    @classmethod
    def of(cls, config: CodecConfig, tensors: dict[str, AnyArray]) -> CodecWeights:
        """From tensors by their names in the file."""
        grids = {name: tensors[name] for name in tensors if name.startswith(_GRID_PREFIX)}
        sides = {name.removeprefix(_GRID_PREFIX) for name in grids}
        if wrong := sorted(side for side in sides if not (side.isascii() and side.isdigit()) or side[0] == "0"):
            raise CodecError(f"{_GRID_PREFIX}{wrong[0]}: the suffix must be a grid side, as in {_GRID_PREFIX}6")
        wanted = set(_shapes(config))
        if set(tensors) - set(grids) != wanted:
            missing, extra = sorted(wanted - set(tensors)), sorted(set(tensors) - set(grids) - wanted)
            raise CodecError(f"{TENSOR_FILE}: tensors missing {missing}, not expected {extra}")
        embedding = {int(name.removeprefix(_GRID_PREFIX)): array for name, array in grids.items()}
        return cls(config=config, grid_embedding=embedding, **{name: tensors[name] for name in wanted})

    def save(self, directory: Path, model_id: str | None = None) -> None:
        """Writes both files; ``load`` gives back the same. They are refused beside another model than ``model_id``."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / CONFIG_FILE).write_text(self.config.text(), encoding="utf-8")
        tensors = {name: np.ascontiguousarray(array) for name, array in self._arrays().items()}
        about = None if model_id is None else {"model_id": model_id}
        (directory / TENSOR_FILE).write_bytes(save(tensors, about))  # safetensors' own writer would make it private

    def _arrays(self) -> dict[str, AnyArray]:
        """Every tensor by its name in the file."""
        arrays = {name: getattr(self, name) for name in _shapes(self.config)}
        return arrays | {f"{_GRID_PREFIX}{side}": array for side, array in self.grid_embedding.items()}


def _shapes(c: CodecConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of every tensor but the grid embeddings, by its name in the file."""
    d, m, q, f, channels, slices = c.feature_dim, c.components, c.qualities, c.context_hidden, c.channels, len(c.slices)
    near = (2 * c.reach + 1) ** 2 - 1
    return {
        "mean": ("float32", (d,)),
        "analysis": ("float32", (m, d)),
        "step": ("float32", (q, m)),
        "bit_price": ("float32", (q,)),
        "synthesis": ("float32", (d, m)),
        "embed_w": ("int16", (channels, m)),
        "embed_b": ("int32", (q, channels)),
        "around_w": ("int16", (f, near * (channels + 1))),
        "own_w": ("int16", (slices, f, m)),
        "own_b": ("int32", (q, STAGES, slices, f)),
        "mid_w": ("int16", (slices, f, f)),
        "mid_b": ("int32", (q, slices, f)),
        "out_w": ("int16", (2, m, f)),
        "out_b": ("int32", (q, 2, m)),
        "y_tables": ("uint32", (c.tables, 2 * c.residual_range + 2)),
    }
