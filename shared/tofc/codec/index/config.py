"""Sizes of the index codec: what it adds to `codec.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tofc.codec.config import CodecConfig
from tofc.codec.index.waves import earlier_offsets
from tofc.errors import CodecError

LARGEST_CODEBOOK = 1 << 13


@dataclass(frozen=True, kw_only=True)
class IndexConfig(CodecConfig):
    """Sizes of a codec of indices. Raises `CodecError` for values that are not allowed.

    >>> IndexConfig(feature_dim=8, components=4, codewords=(64, 16), learned=2, channels=2, context_hidden=8,
    ...             logit_bits=5, logit_range=640, hidden=16).stages
    2
    """

    entropy_model = "index"
    own_bounds: ClassVar = {
        "components": (1, 4096), "learned": (0, 1024), "channels": (1, 256), "context_hidden": (1, 4096),
        "reach": (1, 4), "logit_bits": (0, 8), "logit_range": (1, 1 << 14),
    }  # fmt: skip

    codewords: tuple[int, ...]
    """K: the number of codewords in each of the S codebooks, the first and those of residuals."""
    learned: int
    """E: numbers of a codeword that only the context model uses, beside its M components."""
    channels: int
    """C: numbers in a feature's embedding, from which later features are predicted."""
    context_hidden: int
    """F: hidden units of the context model."""
    reach: int = 2
    """Radius of the context model in cells."""
    logit_bits: int
    """Bits of a logit after the binary point; a logit is a base-2 logarithm of a probability, up to a constant."""
    logit_range: int
    """L: length of the table of weights; a logit that is L or more units below the largest counts as L − 1 below."""

    def check_own(self) -> None:
        """Check the codebooks' sizes. Raises `CodecError`."""
        sizes = self.codewords
        valid = isinstance(sizes, list | tuple) and all(type(size) is int for size in sizes)
        if not valid or not 1 <= len(sizes) <= 8 or not all(2 <= size <= LARGEST_CODEBOOK for size in sizes):
            raise CodecError(
                f"codec.json: codewords = {sizes!r}; must be 1 to 8 sizes of codebooks, each 2 to {LARGEST_CODEBOOK}"
            )
        object.__setattr__(self, "codewords", tuple(sizes))

    @property
    def stages(self) -> int:
        """S: the number of codebooks, which is the number of indices of a feature."""
        return len(self.codewords)

    @property
    def neighbourhood(self) -> int:
        """K_n: the number of neighbours that the context model sees."""
        return len(earlier_offsets(self.reach))
