"""The projector: features [n, D] → the decoder's width [n, H], one linear layer, strictly per feature.

Promises float32 numpy without torch. Leaves adding the codec's grid embedding to whoever assembles prompts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.model.checkpoint import Checkpoint
from shared.model.released_names import PROJECTOR


class Projector:
    """``vit_large_projector`` of a checkpoint (whole, or the server half)."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Read the layer. Raises ``KeyError`` on a device half, which does not hold it."""
        self.weight: NDArray[np.float32] = checkpoint.stored[PROJECTOR + "weight"].array()  # [H, D]
        bias = checkpoint.stored.get(PROJECTOR + "bias") if checkpoint.config.projector_bias else None
        self.bias: NDArray[np.float32] | None = None if bias is None else bias.array()

    def project(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """[n, D] → [n, H]. Raises ``ValueError`` for another width."""
        if features.ndim != 2 or features.shape[1] != self.weight.shape[1]:
            raise ValueError(f"features are {features.shape}; the projector takes [n, {self.weight.shape[1]}]")
        found: NDArray[np.float32] = features.astype(np.float32, copy=False) @ self.weight.T
        return found if self.bias is None else found + self.bias
