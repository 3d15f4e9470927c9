"""Layers of small networks in integers, computed exactly in float64: what all context models are built from.

Promises the same integers on every machine: weights and inputs are integers, every sum is below 2⁵³, so that float64
holds it exactly in any order of summation, and a right shift is a product with a power of two, rounded down. Leaves
to the weights' bounds that no sum is larger.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ACTIVATION_BITS, WEIGHT_BITS = 8, 10  # after the binary point
ACTIVATION_MAX = 4095
_ZERO, _MAX = np.array(0.0), np.array(float(ACTIVATION_MAX))  # numpy takes longer to convert a Python number


def append_bias_unit(matrix: NDArray[np.floating], weights: float | list[float] = 0.0) -> Floats:
    """Append a column to the last axis: the weights from which the next layer's bias unit is computed.

    The bias unit is always 1, so that the next layer's biases are weights too: at this size a call to numpy costs more
    than the additional products.
    """
    column = np.empty((*matrix.shape[:-1], 1))
    column[..., 0] = weights
    return np.concatenate([matrix, column], axis=-1)


def clipped_relu(sums: Floats) -> Floats:
    """Turn sums of weights times activations into activations."""
    found: Floats = np.floor(sums)
    np.maximum(found, _ZERO, out=found)  # np.clip takes longer to call
    np.minimum(found, _MAX, out=found)
    return found
