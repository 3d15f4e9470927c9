"""The tensors of a codec with the context model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tofc.codec.context.config import ContextConfig
from tofc.codec.context.context_model import STAGES
from tofc.codec.context.entropy_model import ContextEntropyModel
from tofc.codec.weights import CodecWeights, Shape
from tofc.errors import CodecError


@dataclass(frozen=True, kw_only=True, eq=False)
class ContextWeights(CodecWeights):
    """The tensors of a codec with the context model. A component is `ŷ = q · step`, with the steps of its quality."""

    config_class: ClassVar = ContextConfig

    config: ContextConfig
    step: NDArray[np.float32]  # [Q, M], positive
    bit_price: NDArray[np.float32]  # [Q], λ of rate-distortion optimisation, squared steps per bit, at least 0
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

    @classmethod
    def load(cls, directory: Path) -> ContextWeights:
        """Read the codec of a directory. Raises what `load_weights` raises, and `CodecError` for another kind."""
        from tofc.codec.files import load_weights

        found = load_weights(directory)
        if not isinstance(found, cls):
            raise CodecError(
                f"{directory}: the entropy model is {found.config.entropy_model}; must be {ContextConfig.entropy_model}"
            )
        return found

    @property
    def unit(self) -> NDArray[np.float64]:
        """The steps [M] of the finest quality."""
        steps: NDArray[np.float64] = self.step[-1].astype(np.float64)
        return steps

    def entropy_model(self) -> ContextEntropyModel:
        """Return the context model, its quantiser and its coder."""
        return ContextEntropyModel(self)

    def check_own(self) -> None:
        """Check steps, prices and the order of components. Raises `CodecError`."""
        if (self.step <= 0).any():
            raise CodecError(f"step must be positive everywhere, got {self.step.min():g}: export the codec again")
        if (self.bit_price < 0).any():
            raise CodecError(f"bit_price must not be negative, got {self.bit_price.min():g}: export the codec again")
        if any(self.own_w[index, :, first:].any() for index, (first, _) in enumerate(self.config.spans)):
            raise CodecError("own_w: a slice of components must depend only on those before it: export again")

    @classmethod
    def shapes(cls, c: Any) -> dict[str, Shape]:
        """Return (dtypes, shape) of the context model's tensors."""
        m, q, f, channels, slices = c.components, c.qualities, c.context_hidden, c.channels, len(c.slices)
        neighbours = (2 * c.reach + 1) ** 2 - 1
        return {
            "step": ("float32", (q, m)),
            "bit_price": ("float32", (q,)),
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
