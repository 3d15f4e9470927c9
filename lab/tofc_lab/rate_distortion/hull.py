"""Bytes at equal accuracy: a method's hull, and the bytes at which it reaches an accuracy.

All comparisons use this definition. A method's hull is the least concave curve over its settings' (log mean bytes,
accuracy), because a user can mix two settings. The bytes at an accuracy are read from it, linear in log bytes. Promises
None where the accuracy is not reached, instead of an extrapolation beyond the last setting.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def hull(size: Sequence[float] | NDArray[np.float64], accuracy: Sequence[float] | NDArray[np.float64]) -> list[int]:
    """Return the indices of the settings on the hull, from the fewest bytes to the most accurate.

    >>> hull([10, 20, 40, 80, 160], [0.5, 0.6, 0.65, 0.9, 0.8])
    [0, 3]
    """
    x, y = np.log(np.asarray(size, float)), np.asarray(accuracy, float)
    kept: list[int] = []
    for i in np.lexsort((-y, x)).tolist():
        if kept and y[i] <= y[kept[-1]]:
            continue
        while len(kept) > 1 and _below(x, y, kept[-2], kept[-1], i):
            kept.pop()
        if kept and x[i] == x[kept[-1]]:
            continue
        kept.append(i)
    return kept


def _below(x: NDArray[np.float64], y: NDArray[np.float64], left: int, middle: int, right: int) -> bool:
    """Return whether `middle` is on or under the line from `left` to `right`."""
    rise = (y[middle] - y[left]) * (x[right] - x[left])
    return bool(rise <= (y[right] - y[left]) * (x[middle] - x[left]))


def bytes_at(
    size: Sequence[float] | NDArray[np.float64], accuracy: Sequence[float] | NDArray[np.float64], wanted: float
) -> float | None:
    """Return the bytes at which the hull reaches `wanted` (of the smallest setting, if it is better already), or None.

    >>> round(bytes_at([10, 1000], [0.5, 0.9], 0.7)), bytes_at([10, 1000], [0.5, 0.9], 0.95)
    (100, None)
    """
    kept = hull(size, accuracy)
    x, y = np.log(np.asarray(size, float)[kept]), np.asarray(accuracy, float)[kept]
    if wanted > y[-1]:
        return None
    return float(np.exp(np.interp(wanted, y, x)))
