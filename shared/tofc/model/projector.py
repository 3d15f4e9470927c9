"""The projector: features [n, D] → the decoder's width [n, H], one linear layer, each feature by itself.

Promises float32 in numpy, without torch. Leaves adding the codec's grid embedding to the server.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tofc.errors import UsageError
from tofc.model.checkpoint import Checkpoint
from tofc.model.released_names import PROJECTOR


class Projector:
    """`vit_large_projector` of a checkpoint (whole, or the server half)."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Read the layer. Raises `KeyError` for a device half, which has no projector."""
        self.weight: NDArray[np.float32] = checkpoint.stored[PROJECTOR + "weight"].array()  # [H, D]
        bias = checkpoint.stored.get(PROJECTOR + "bias") if checkpoint.config.projector_bias else None
        self.bias: NDArray[np.float32] | None = None if bias is None else bias.array()

    def project(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Project features [n, D] to [n, H]. Raises `UsageError` for another width."""
        if features.ndim != 2 or features.shape[1] != self.weight.shape[1]:
            raise UsageError(f"features must be [n, {self.weight.shape[1]}] for this projector, got {features.shape}")
        found: NDArray[np.float32] = features.astype(np.float32, copy=False) @ self.weight.T
        return found if self.bias is None else found + self.bias
