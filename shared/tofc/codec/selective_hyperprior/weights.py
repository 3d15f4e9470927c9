"""The tensors of a codec with the selective hyperprior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tofc.codec.selective_hyperprior.config import SelectiveHyperpriorConfig
from tofc.codec.selective_hyperprior.entropy_model import SelectiveHyperpriorModel
from tofc.codec.weights import AnyArray, CodecWeights, Shape
from tofc.errors import CodecError

_FLOAT = "float32 float16"


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectiveHyperpriorWeights(CodecWeights):
    """The tensors of a codec with the selective hyperprior. A component is `ŷ = q · step`, with its quality's steps.

    There is one model for each quality, as published: every tensor but `y_tables` has a leading dimension Q.
    """

    config_class: ClassVar = SelectiveHyperpriorConfig

    config: SelectiveHyperpriorConfig
    step: NDArray[np.float32]  # [Q, M], positive
    h_a_w1: AnyArray  # [Q, A, M]
    h_a_b1: NDArray[np.float32]  # [Q, A]
    h_a_w2: AnyArray  # [Q, Z, A]
    h_a_b2: NDArray[np.float32]  # [Q, Z]
    router_w: AnyArray  # [Q, E, M]
    router_b: NDArray[np.float32]  # [Q, E]
    h_s_w1: NDArray[np.int16]  # [Q, E, F, Z]
    h_s_b1: NDArray[np.int32]  # [Q, E, F]
    h_s_w2: NDArray[np.int8]  # [Q, E, 2, M, F]: for each component's mean, then for its scale
    h_s_b2: NDArray[np.int32]  # [Q, E, 2, M]
    expert_tables: NDArray[np.uint32]  # [Q, E + 1], cumulative
    z_tables: NDArray[np.uint32]  # [Q, Z, 2 R_z + 2], cumulative
    y_tables: NDArray[np.uint32]  # [T, 2 R + 2], cumulative

    @property
    def unit(self) -> NDArray[np.float64]:
        """The steps [M] of the finest quality; without a transform ones: features are merged as published."""
        if self.analysis is None:
            return np.ones(self.config.components)
        steps: NDArray[np.float64] = self.step[-1].astype(np.float64)
        return steps

    def entropy_model(self) -> SelectiveHyperpriorModel:
        """Return the selective hyperprior with these weights."""
        return SelectiveHyperpriorModel(self)

    def check_own(self) -> None:
        """Check the steps. Raises `CodecError`."""
        if (self.step <= 0).any():
            raise CodecError(f"step must be positive everywhere, got {self.step.min():g}: export the codec again")

    @classmethod
    def shapes(cls, c: Any) -> dict[str, Shape]:
        """Return (dtypes, shape) of the selective hyperprior's tensors."""
        m, q, e, z, f, a = c.components, c.qualities, c.experts, c.hyper, c.synthesis_hidden, c.analysis_hidden
        return {
            "step": ("float32", (q, m)),
            "h_a_w1": (_FLOAT, (q, a, m)),
            "h_a_b1": ("float32", (q, a)),
            "h_a_w2": (_FLOAT, (q, z, a)),
            "h_a_b2": ("float32", (q, z)),
            "router_w": (_FLOAT, (q, e, m)),
            "router_b": ("float32", (q, e)),
            "h_s_w1": ("int16", (q, e, f, z)),
            "h_s_b1": ("int32", (q, e, f)),
            "h_s_w2": ("int8", (q, e, 2, m, f)),
            "h_s_b2": ("int32", (q, e, 2, m)),
            "expert_tables": ("uint32", (q, e + 1)),
            "z_tables": ("uint32", (q, z, 2 * c.hyper_range + 2)),
            "y_tables": ("uint32", (c.tables, 2 * c.residual_range + 2)),
        }
