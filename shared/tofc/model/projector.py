"""The projector: features [n, D] → the decoder's width [n, H], one linear layer, each feature by itself.

Promises float32 in numpy, without torch; `on` computes the same on a device of torch. Leaves adding the codec's grid
embedding to the server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tofc.errors import UsageError
from tofc.model.checkpoint import Checkpoint
from tofc.model.released_names import PROJECTOR

if TYPE_CHECKING:
    import torch


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

    def on(self, device: torch.device) -> Callable[[torch.Tensor], NDArray[np.float32]]:
        """Copy the layer to a device; return `project` for float32 features [n, D] on it."""
        import torch

        weight = torch.tensor(self.weight).to(device)
        bias = None if self.bias is None else torch.tensor(self.bias).to(device)

        @torch.inference_mode()
        def project(features: torch.Tensor) -> NDArray[np.float32]:
            found: NDArray[np.float32] = torch.nn.functional.linear(features, weight, bias).cpu().numpy()
            return found

        return project
