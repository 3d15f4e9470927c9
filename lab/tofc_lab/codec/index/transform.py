"""The transform of the index codec: the principal components behind the projector, where no decoder is needed.

    x [D] ─ − mean ─ projector [H, D] ─ principal directions [M, H] ─→ y [M];   x̂ = mean + least squares of x from y

Distances between components are then distances between the decoder's inputs, but for the directions left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Transform(NamedTuple):
    """A linear transform of features: y = analysis · (x − mean), x̂ = mean + synthesis · y."""

    mean: Tensor  # [D]
    analysis: Tensor  # [M, D]
    synthesis: Tensor  # [D, M]

    def project(self, x: Tensor) -> Tensor:
        """Return the components [T, M] of features [T, D]."""
        return (x - self.mean) @ self.analysis.T

    def in_numpy(self) -> Callable[[NDArray[np.floating]], NDArray[np.float64]]:
        """Return `project` for numpy, in float64, as merging wants it."""
        mean, analysis = self.mean.double().numpy(), self.analysis.double().numpy()
        return lambda view: (view - mean) @ analysis.T


def fit(x: Tensor, projector: Tensor, components: int) -> Transform:
    """Fit the transform to features x [T, D] and the projector's weight [H, D]."""
    mean = x.mean(0)
    centred = (x - mean).double()
    covariance = centred.T @ centred / len(x)
    through = projector.double().cpu()
    values, vectors = torch.linalg.eigh(through @ covariance @ through.T)
    count = min(components, len(values))
    directions = vectors[:, -count:].flip(1)
    analysis = directions.T @ through  # [M, D]
    # Least squares: cov(x, y) · cov(y)⁻¹, and the components are uncorrelated.
    power = values[-count:].flip(0).clamp(min=float(values[-1]) * 1e-9)
    synthesis = covariance @ analysis.T / power
    return Transform(mean, analysis.float(), synthesis.float())
