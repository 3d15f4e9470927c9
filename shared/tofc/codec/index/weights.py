"""The tensors of the index codec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tofc.codec.index.config import IndexConfig
from tofc.codec.index.entropy_model import IndexEntropyModel
from tofc.codec.index.probabilities import WEIGHT_MAX
from tofc.codec.weights import AnyArray, CodecWeights, Shape
from tofc.errors import CodecError


@dataclass(frozen=True, kw_only=True, eq=False)
class IndexWeights(CodecWeights):
    """The tensors of the index codec. Components are the sum of a codeword of each stage: ŷ = Σ codebook[q] · scale."""

    config_class: ClassVar = IndexConfig
    per_grid: ClassVar[Mapping[str, tuple[str, str]]] = {
        **CodecWeights.per_grid,
        "place": ("int32", "context_hidden"),
    }

    config: IndexConfig
    bit_price: NDArray[np.float32]  # [Q], λ: the squared distance that saving one bit may cost, at least 0
    scale: NDArray[np.float32]  # [S, M], the unit of a codeword's components, positive
    codebook: NDArray[np.int8]  # [Σ K, M + E], the stages one after another: M components, then E learned numbers
    embed_w: NDArray[np.int16]  # [S, C, M + E]
    embed_b: NDArray[np.int32]  # [Q, C]
    around_w: NDArray[np.int16]  # [F, K_n (C + 1)]: for each neighbour its embedding, then whether it is known
    before_w: NDArray[np.int16]  # [F, C + 1]: the mean embedding of all that is known, then whether anything is
    own_w: NDArray[np.int16]  # [S − 1, F, C]: the embedding of the stages before
    first_b: NDArray[np.int32]  # [Q, S, F]
    mid_w: NDArray[np.int16]  # [S, F, F]
    mid_b: NDArray[np.int32]  # [Q, S, F]
    out_w: NDArray[np.int16]  # [S, M + E, F]
    out_b: NDArray[np.int32]  # [Q, S, M + E]
    code_b: NDArray[np.int32]  # [Q, Σ K]
    exp2: NDArray[np.uint32]  # [L], the weight of a symbol whose logit is this much below the largest
    place: dict[int, AnyArray] = field(default_factory=dict)  # grid side G → int32 [G², F]

    def entropy_model(self) -> IndexEntropyModel:
        """Return the codebooks, the context model and its coder."""
        return IndexEntropyModel(self)

    def codewords(self) -> list[NDArray[np.float64]]:
        """Return the codewords [K, M] of each stage."""
        components = self.codebook[:, : self.config.components].astype(np.float64)
        parts = np.split(components, np.cumsum(self.config.codewords)[:-1])
        return [part * scale for part, scale in zip(parts, self.scale, strict=True)]

    def check_own(self) -> None:
        """Check prices, scales and the table of weights. Raises `CodecError`."""
        if (self.bit_price < 0).any():
            raise CodecError(f"bit_price must not be negative, got {self.bit_price.min():g}: export the codec again")
        if (self.scale <= 0).any():
            raise CodecError(f"scale must be positive everywhere, got {self.scale.min():g}: export the codec again")
        table = self.exp2.astype(np.int64)
        if not 1 <= table[0] <= WEIGHT_MAX or (np.diff(table) > 0).any():
            raise CodecError(f"exp2 must fall from at most {WEIGHT_MAX}, and begin with at least 1: export again")

    @classmethod
    def shapes(cls, c: Any) -> dict[str, Shape]:
        """Return (dtypes, shape) of the index codec's tensors."""
        q, s, f, channels = c.qualities, c.stages, c.context_hidden, c.channels
        total, numbers = sum(c.codewords), c.components + c.learned
        return {
            "bit_price": ("float32", (q,)),
            "scale": ("float32", (s, c.components)),
            "codebook": ("int8", (total, numbers)),
            "embed_w": ("int16", (s, channels, numbers)),
            "embed_b": ("int32", (q, channels)),
            "around_w": ("int16", (f, c.neighbourhood * (channels + 1))),
            "before_w": ("int16", (f, channels + 1)),
            "own_w": ("int16", (s - 1, f, channels)),
            "first_b": ("int32", (q, s, f)),
            "mid_w": ("int16", (s, f, f)),
            "mid_b": ("int32", (q, s, f)),
            "out_w": ("int16", (s, numbers, f)),
            "out_b": ("int32", (q, s, numbers)),
            "code_b": ("int32", (q, total)),
            "exp2": ("uint32", (c.logit_range,)),
        }
