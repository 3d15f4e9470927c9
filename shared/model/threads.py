"""How torch's threads share a machine that has other work: they wait for each other asleep.

Unasked, each of them turns in a loop until the others are done, for milliseconds, after every operator. Where another
program has one of the cores, the one that is waited for has to wait for a core itself: a view takes many times as
long (`python -m benchmarks.busy`). Leaves how many threads there are to torch, which takes OMP_NUM_THREADS or the
cores, and to whoever asks for another number.
"""

from __future__ import annotations

import os

MOST_THREADS = 1024
ASLEEP = ("OMP_WAIT_POLICY", "passive")
_CHOSEN = (ASLEEP[0], "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # by whoever has set one of them


def wait_asleep() -> None:
    """For this process. Call it before torch is imported: OpenMP reads its environment when it is loaded."""
    if not any(name in os.environ for name in _CHOSEN):
        os.environ[ASLEEP[0]] = ASLEEP[1]


def use_threads(number: int | None) -> None:
    """For torch, from now on, in this thread and those that begin to use it. None: as many as it takes by itself."""
    if number is not None:
        import torch

        torch.set_num_threads(number)
