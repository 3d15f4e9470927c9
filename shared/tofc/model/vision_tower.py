"""Which implementation computes the vision tower: numpy for small ones, torch for large ones and other number types.

    pixels [B, 3, S, S] ─ VisionTower.encode ─→ features [B, N, D]          numpy_tower.NumpyTower, tower.Tower

Promises that both give the same packets (`tests/model/test_numpy_tower.py`), and that torch is imported only if it is
chosen. Another implementation is a class like `VisionTower`, a name in `BACKENDS` and a line in `open_tower`. Leaves
the computation to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tofc.errors import UsageError
from tofc.model.checkpoint import Checkpoint
from tofc.model.released_names import VISION
from tofc.model.tower_config import TowerConfig

BACKENDS = ("auto", "numpy", "torch")
# numpy takes up to 1.2 × torch's time (`python -m benchmarks.towers`): 0.2 s a view here, a fraction of importing torch
NUMPY_MAX_PARAMETERS = 100_000_000


class VisionTower(Protocol):
    """A loaded tower, used by one thread at a time."""

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Encode normalised pixels [B, 3, S, S] as features [B, N, D], row by row.

        Raises `UsageError` for another shape, or a side that is not a multiple of the patch size.
        """

    def at_once(self, side: int) -> int:
        """Return how many views of `side` px are best computed together."""


def in_parts(sides: Sequence[int], at_once: Callable[[int], int]) -> Iterator[range]:
    """Divide views, given by their sides, into ranges of one size that are computed together.

    >>> list(in_parts([504, 504, 504, 728], lambda side: 2))
    [range(0, 2), range(2, 3), range(3, 4)]
    """
    begin = 0
    while begin < len(sides):
        side, end = sides[begin], begin + 1
        most = begin + at_once(side)
        while end < min(most, len(sides)) and sides[end] == side:
            end += 1
        yield range(begin, end)
        begin = end


def check_pixels(pixels: NDArray[Any], tower: TowerConfig) -> None:
    """Raise `UsageError` unless `pixels` are square views of sides that the tower takes."""
    multiple = tower.side_multiple
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] != pixels.shape[3] or pixels.shape[2] % multiple:
        raise UsageError(
            f"pixels must be [B, 3, S, S] with S a multiple of {multiple}, got {pixels.shape}: use views()"
        )


def choose_backend(asked: str, checkpoint: Checkpoint, *, dtype: str, device: str) -> str:
    """Return `numpy` or `torch`: what was asked for; for `auto` numpy where it is as fast, and where torch is missing.

    numpy computes in float32 on CPUs only.
    """
    if asked != "auto":
        return asked
    if dtype != "float32" or device != "cpu":
        return "torch"
    small = checkpoint.parameter_count(VISION) <= NUMPY_MAX_PARAMETERS
    return "numpy" if small or find_spec("torch") is None else "torch"


def open_tower(
    checkpoint: Checkpoint, backend: str, *, dtype: str = "float32", device: str = "cpu", threads: int | None = None
) -> VisionTower:
    """Load the tower with `backend`, `numpy` or `torch`, which computes with `threads` threads.

    None is one thread for numpy, and torch's own choice. Raises `ImportError` where torch is needed and missing,
    `ResourceError` if the weights do not fit into memory.
    """
    if backend == "numpy":
        from tofc.model.numpy_tower import NumpyTower

        return NumpyTower(checkpoint, threads=threads or 1)
    from tofc.model.torch_threads import set_torch_threads, use_passive_waiting

    use_passive_waiting()  # before torch is imported
    import torch

    from tofc.model.tower import Tower

    set_torch_threads(threads)
    return Tower(checkpoint, getattr(torch, dtype), device)
