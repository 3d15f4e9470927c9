"""The tensors of a codec: `codec.safetensors`.

Promises that every tensor of a loaded codec has its shape, type and range, so that no later code checks again. Leaves
sizes to `config`, training to `tofc_lab`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from tofc.codec.config import CONFIG_FILE, CodecConfig
from tofc.codec.tables import validate_table
from tofc.errors import CodecError

STAGES = 2  # passes in which a view is coded: the two colours of a checkerboard
ACTIVATION_BITS, WEIGHT_BITS = 8, 10  # after the binary point, in the context model
ACTIVATION_MAX = 4095
TENSOR_FILE = "codec.safetensors"
_GRID_PREFIX = "grid_embedding."

AnyArray = NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class CodecWeights:
    """The tensors of a codec, as read-only arrays under their names in the file. Raises `CodecError` for invalid ones.

    A feature is `x̂ = mean + synthesis @ (q · step)` with the steps of its quality. `embed_w` to `y_tables` are the
    context model's.
    """

    config: CodecConfig
    mean: NDArray[np.float32]  # [D]
    analysis: NDArray[np.float32]  # [M, D]
    step: NDArray[np.float32]  # [Q, M], positive
    bit_price: NDArray[np.float32]  # [Q], λ of rate-distortion optimisation, squared steps per bit, at least 0
    synthesis: NDArray[np.float32]  # [D, M]
    embed_w: NDArray[np.int16]  # [C, M]
    embed_b: NDArray[np.int32]  # [Q, C]
    around_w: NDArray[np.int16]  # [F, K (C + 1)]: for each neighbour its embedding, then whether it exists
    own_w: NDArray[np.int16]  # [S, F, M]; 0 from a slice's first component on
    own_b: NDArray[np.int32]  # [Q, stages, S, F]
    mid_w: NDArray[np.int16]  # [S, F, F]
    mid_b: NDArray[np.int32]  # [Q, S, F]
    out_w: NDArray[np.int16]  # [2, M, F]: for each component's mean, then for its scale
    out_b: NDArray[np.int32]  # [Q, 2, M]
    y_tables: NDArray[np.uint32]  # [T, 2 R + 2], cumulative
    grid_embedding: dict[int, AnyArray] = field(default_factory=dict)  # grid side G → [G², H], f32 or f16

    def __post_init__(self) -> None:
        c = self.config
        shapes = _shapes(c)
        for side in self.grid_embedding:
            if not 1 <= side <= c.max_grid:
                raise CodecError(f"{_GRID_PREFIX}{side}: the grid side must be 1 to max_grid = {c.max_grid}")
            shapes[f"{_GRID_PREFIX}{side}"] = ("float32 float16", (side * side, c.hidden))
        for name, array in self._arrays().items():
            dtypes, shape = shapes[name]
            if array.dtype.name not in dtypes.split() or array.shape != shape:
                raise CodecError(
                    f"{name} is {array.dtype} {array.shape}; must be {dtypes.replace(' ', ' or ')} {shape}"
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise CodecError(f"{name} holds NaN or infinity: train or export again")
            if array.dtype == np.uint32:
                validate_table(array, name)
            array.setflags(write=False)
        if (self.step <= 0).any():
            raise CodecError(f"step must be positive everywhere, got {self.step.min():g}: export the codec again")
        if (self.bit_price < 0).any():
            raise CodecError(f"bit_price must not be negative, got {self.bit_price.min():g}: export the codec again")
        if any(self.own_w[index, :, first:].any() for index, (first, _) in enumerate(c.spans)):
            raise CodecError("own_w: a slice of components must depend only on those before it: export again")

    @classmethod
    def load(cls, directory: Path) -> CodecWeights:
        """Read both files of a directory. Raises `CodecError`, and `FileNotFoundError` if one is missing."""
        config = CodecConfig.load(directory)
        try:
            tensors = load_file(directory / TENSOR_FILE)
        except FileNotFoundError:
            raise
        except MemoryError:  # of this machine, not of the file
            raise
        except Exception as error:  # the exception type of safetensors is not a public name
            raise CodecError(f"{directory / TENSOR_FILE} cannot be read ({error}): export the codec again") from error
        return cls.of(config, tensors)

    @classmethod
    def of(cls, config: CodecConfig, tensors: dict[str, AnyArray]) -> CodecWeights:
        """Make weights from tensors by their names in the file. Raises `CodecError` for missing and unknown names."""
        grids = {name: tensors[name] for name in tensors if name.startswith(_GRID_PREFIX)}
        sides = {name.removeprefix(_GRID_PREFIX) for name in grids}
        if wrong := sorted(side for side in sides if not (side.isascii() and side.isdigit()) or side[0] == "0"):
            raise CodecError(f"{_GRID_PREFIX}{wrong[0]}: the suffix must be a grid side, as in {_GRID_PREFIX}6")
        wanted = set(_shapes(config))
        if set(tensors) - set(grids) != wanted:
            missing, extra = sorted(wanted - set(tensors)), sorted(set(tensors) - set(grids) - wanted)
            raise CodecError(f"{TENSOR_FILE}: tensors missing {missing}, not expected {extra}: export the codec again")
        embedding = {int(name.removeprefix(_GRID_PREFIX)): array for name, array in grids.items()}
        return cls(config=config, grid_embedding=embedding, **{name: tensors[name] for name in wanted})

    def save(self, directory: Path, model_id: str | None = None) -> None:
        """Write both files, which `load` reads. With `model_id` a checkpoint of another model refuses them."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / CONFIG_FILE).write_text(self.config.text(), encoding="utf-8")
        tensors = {name: np.ascontiguousarray(array) for name, array in self._arrays().items()}
        metadata = None if model_id is None else {"model_id": model_id}
        # safetensors' own writer would make the file readable only by its owner.
        (directory / TENSOR_FILE).write_bytes(save(tensors, metadata))

    def _arrays(self) -> dict[str, AnyArray]:
        """Return every tensor by its name in the file."""
        arrays = {name: getattr(self, name) for name in _shapes(self.config)}
        return arrays | {f"{_GRID_PREFIX}{side}": array for side, array in self.grid_embedding.items()}


def _shapes(c: CodecConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return (dtype, shape) of every tensor except the grid embeddings, by its name in the file."""
    d, m, q, f, channels, slices = c.feature_dim, c.components, c.qualities, c.context_hidden, c.channels, len(c.slices)
    neighbours = (2 * c.reach + 1) ** 2 - 1
    return {
        "mean": ("float32", (d,)),
        "analysis": ("float32", (m, d)),
        "step": ("float32", (q, m)),
        "bit_price": ("float32", (q,)),
        "synthesis": ("float32", (d, m)),
        "embed_w": ("int16", (channels, m)),
        "embed_b": ("int32", (q, channels)),
        "around_w": ("int16", (f, neighbours * (channels + 1))),
        "own_w": ("int16", (slices, f, m)),
        "own_b": ("int32", (q, STAGES, slices, f)),
        "mid_w": ("int16", (slices, f, f)),
        "mid_b": ("int32", (q, slices, f)),
        "out_w": ("int16", (2, m, f)),
        "out_b": ("int32", (q, 2, m)),
        "y_tables": ("uint32", (c.tables, 2 * c.residual_range + 2)),
    }
