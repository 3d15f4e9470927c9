"""Settings of torch's threads: a waiting thread sleeps instead of spinning, and how many threads there are.

By default a thread that has done its part of an operator spins for milliseconds while it waits for the others. If
another program uses one of the cores, the spinning threads take the core that the slowest one needs, and a view takes
many times as long (`python -m benchmarks.busy`). Leaves the number of threads to torch (OMP_NUM_THREADS, or one per
core) unless `set_torch_threads` is called.
"""

from __future__ import annotations

import os

MAX_THREADS = 1024
PASSIVE = ("OMP_WAIT_POLICY", "passive")
_SETTINGS = (PASSIVE[0], "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # if the user has set one of them, nothing is changed


def use_passive_waiting() -> None:
    """Make waiting threads of this process sleep. Call it before importing torch: OpenMP reads the environment once."""
    if not any(name in os.environ for name in _SETTINGS):
        os.environ[PASSIVE[0]] = PASSIVE[1]


def set_torch_threads(number: int | None) -> None:
    """Set the number of torch's threads, for this thread and those that use torch later. None leaves it unchanged."""
    if number is not None:
        import torch

        torch.set_num_threads(number)
