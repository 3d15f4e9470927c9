"""Sets how many threads numpy's linear algebra (BLAS) uses: one, unless a large product asks for more.

The codec's matrix products are small. BLAS threads beside torch's would compete with them for the cores: on two cores a
view took 16 ms to encode instead of 2, and the tower three times as long. Promises the same results with any number of
threads, and to take no lock of the dynamic loader while Python code runs. Leaves torch's threads to
`tofc.model.torch_threads`, and a BLAS that did not come with numpy to its owner.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

_SETTERS = ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads")  # the second on 32-bit machines


def use_one_blas_thread() -> None:
    """Limit the BLAS that numpy's wheels bring to one thread, in this process from now on."""
    set_blas_threads(1)


def set_blas_threads(number: int) -> None:
    """Set how many threads that BLAS uses in this process from now on."""
    for setter in _setters():
        setter(number)


@cache
def _setters() -> list[Callable[[int], None]]:
    # Not by threadpoolctl: it lets the loader call Python, which may wait for a thread that waits for the loader.
    found = []
    for library in Path(np.__file__).parents[1].glob("numpy.libs/*openblas*"):
        loaded = ctypes.CDLL(str(library))  # numpy has loaded it already
        found += [setter for name in _SETTERS if (setter := getattr(loaded, name, None))][:1]
    return found
