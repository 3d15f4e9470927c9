"""The tensors of a codec: `codec.safetensors`: what all entropy models have in common.

Promises that every tensor of a loaded codec has its shape, type and range, so that no later code checks again. Leaves
sizes to `config`, reading the file to `files`, the tensors of an entropy model to its folder, training to `tofc_lab`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from tofc.codec.config import CONFIG_FILE, CodecConfig
from tofc.codec.entropy_model import EntropyModel
from tofc.codec.tables import validate_table
from tofc.errors import CodecError

TENSOR_FILE = "codec.safetensors"

AnyArray = NDArray[Any]
#: (dtypes, shape) of a tensor
Shape = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, eq=False)
class CodecWeights:
    """The tensors of a codec, as read-only arrays under their names in the file. Raises `CodecError` for invalid ones.

    A feature is `x̂ = mean + synthesis @ ŷ`, with the components ŷ of its entropy model. Codecs without a transform,
    whose components are the features, have neither `analysis` nor `synthesis`. Each entropy model adds its tensors.
    """

    #: the class of `config`
    config_class: ClassVar[type[CodecConfig]]
    #: tensors that exist for some grid sides G, by name: (dtypes, the size in `config` that each cell has a row of)
    per_grid: ClassVar[Mapping[str, tuple[str, str]]] = {"grid_embedding": ("float32 float16", "hidden")}

    config: CodecConfig
    mean: NDArray[np.float32]  # [D]
    analysis: NDArray[np.float32] | None = None  # [M, D]
    synthesis: NDArray[np.float32] | None = None  # [D, M]
    grid_embedding: dict[int, AnyArray] = field(default_factory=dict)  # grid side G → [G², H], f32 or f16

    @classmethod
    def shapes(cls, c: Any) -> dict[str, Shape]:
        """Return (dtypes, shape) of the entropy model's own tensors, by their names in the file."""
        raise NotImplementedError

    def check_own(self) -> None:
        """Check the entropy model's own tensors, beyond shapes, types and tables. Raises `CodecError`."""

    def entropy_model(self) -> EntropyModel[Any]:
        """Return the entropy model with these weights."""
        raise NotImplementedError

    @property
    def unit(self) -> NDArray[np.float64]:
        """The unit [M] of each component, in which merging measures distances."""
        return np.ones(self.config.components)

    def __post_init__(self) -> None:
        c = self.config
        if (self.analysis is None) != (self.synthesis is None):
            raise CodecError("analysis and synthesis must both be there or both be missing: export the codec again")
        if self.analysis is None and c.components != c.feature_dim:
            raise CodecError(
                f"a codec without analysis and synthesis codes the features themselves: components = {c.components} "
                f"must then be feature_dim = {c.feature_dim}"
            )
        shapes = self._all_shapes(c)
        for family, (dtypes, width) in self.per_grid.items():
            for side in getattr(self, family):
                if not 1 <= side <= c.max_grid:
                    raise CodecError(f"{family}.{side}: the grid side must be 1 to max_grid = {c.max_grid}")
                shapes[f"{family}.{side}"] = (dtypes, (side * side, getattr(c, width)))
        for name, array in self.arrays().items():
            dtypes, shape = shapes[name]
            if array.dtype.name not in dtypes.split() or array.shape != shape:
                raise CodecError(
                    f"{name} is {array.dtype} {array.shape}; must be {dtypes.replace(' ', ' or ')} {shape}"
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise CodecError(f"{name} holds NaN or infinity: train or export again")
            if name.endswith("_tables"):
                validate_table(array, name)
            array.setflags(write=False)
        self.check_own()

    @classmethod
    def of(cls, config: CodecConfig, tensors: dict[str, AnyArray]) -> Self:
        """Make weights from tensors by their names in the file. Raises `CodecError` for missing and unknown names."""
        families: dict[str, dict[int, AnyArray]] = {family: {} for family in cls.per_grid}
        rest = dict(tensors)
        for name in tensors:
            family, _, side = name.partition(".")
            if family in families:
                if not (side.isascii() and side.isdigit()) or side[0] == "0":
                    raise CodecError(f"{name}: the suffix must be a grid side, as in {family}.6")
                families[family][int(side)] = rest.pop(name)
        wanted = set(cls._all_shapes(config))
        if not {"analysis", "synthesis"} & set(rest) and config.components == config.feature_dim:
            wanted -= {"analysis", "synthesis"}
        if set(rest) != wanted:
            missing, extra = sorted(wanted - set(rest)), sorted(set(rest) - wanted)
            raise CodecError(f"{TENSOR_FILE}: tensors missing {missing}, not expected {extra}: export the codec again")
        return cls(config=config, **families, **rest)  # type: ignore[arg-type]

    def save(self, directory: Path, model_id: str | None = None) -> None:
        """Write both files, which `files` reads. With `model_id` a checkpoint of another model refuses them."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / CONFIG_FILE).write_text(self.config.text(), encoding="utf-8")
        tensors = {name: np.ascontiguousarray(array) for name, array in self.arrays().items()}
        metadata = None if model_id is None else {"model_id": model_id}
        # safetensors' own writer would make the file readable only by its owner.
        (directory / TENSOR_FILE).write_bytes(save(tensors, metadata))

    @classmethod
    def _all_shapes(cls, c: CodecConfig) -> dict[str, Shape]:
        """Return (dtypes, shape) of every tensor except those `per_grid`, by its name in the file."""
        d, m = c.feature_dim, c.components
        common: dict[str, Shape] = {
            "mean": ("float32", (d,)),
            "analysis": ("float32", (m, d)),
            "synthesis": ("float32", (d, m)),
        }
        return common | cls.shapes(c)

    def arrays(self) -> dict[str, AnyArray]:
        """Return every tensor by its name in the file."""
        arrays = {name: getattr(self, name) for name in self._all_shapes(self.config)}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        for family in self.per_grid:
            arrays |= {f"{family}.{side}": array for side, array in getattr(self, family).items()}
        return arrays
