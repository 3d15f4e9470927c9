"""Which back end computes the vision tower: numpy, ONNX Runtime or torch.

    pixels [B, 3, S, S] ─ VisionTower.encode ─→ features [B, N, D]     numpy_tower.NumpyTower, onnx_tower.OnnxTower,
                                                                       tower.Tower

Promises that all give the same packets in float32, but for near ties with EfficientNet
(`tests/model/test_backends.py`), and that what is not chosen is not imported. Another back end is a class like
`VisionTower`, a name in `BACKENDS` and a line in `open_tower`. Leaves which towers it can compute to their
`TowerConfig`, the computation to the classes.
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

BACKENDS = ("auto", "numpy", "onnx", "torch")
#: what each computes in
DTYPES = {"numpy": ("float32",), "onnx": ("float32", "int8"), "torch": ("float32", "bfloat16", "int8")}
MODULES = {"onnx": "onnxruntime", "torch": "torch"}  # what is imported, and also installed, for it
# numpy takes up to 1.2 × torch's time (`python -m benchmarks.towers`): 0.2 s a view here, a fraction of importing torch
SMALL_PARAMETERS = 100_000_000


class VisionTower(Protocol):
    """A loaded tower, used by one thread at a time."""

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Encode normalised pixels [B, 3, S, S] as features [B, N, D], row by row.

        Raises `UsageError` for another shape, or a side that the tower does not take.
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


def choose_backend(asked: str, checkpoint: Checkpoint, *, dtype: str, device: str, provider: str | None = None) -> str:
    """Return `numpy`, `onnx` or `torch`: what was asked for; for `auto` the best that can do it and is installed.

    A small tower takes the first of its `BACKENDS`, a large one torch. Raises `UsageError` if the tower has no such
    back end.
    """
    able = checkpoint.config.tower.BACKENDS
    if provider:
        able = [name for name in able if name == "onnx"]
    if asked not in ("auto", *able):
        raise UsageError(
            f"--backend must be one of {', '.join(('auto', *able))} for {checkpoint.config.tower.MODEL_TYPE}, the "
            f"vision tower of {checkpoint.path}, got {asked}"
        )
    if asked != "auto":
        return asked
    if provider:
        return "onnx"
    if dtype not in DTYPES["onnx"] or device != "cpu":
        return "torch"
    if checkpoint.parameter_count(VISION) > SMALL_PARAMETERS:
        able = sorted(able, key=lambda name: name != "torch")
    able = [name for name in able if dtype in DTYPES[name]]
    return next((name for name in able if name == "numpy" or find_spec(MODULES[name])), able[0])


def open_tower(
    checkpoint: Checkpoint,
    backend: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    threads: int | None = None,
    provider: str | None = None,
) -> VisionTower:
    """Load the tower with `backend`, one that `choose_backend` returns, which computes with `threads` threads.

    None is one thread, and torch's own choice. Raises `ImportError` where torch or ONNX Runtime is needed and missing,
    `ResourceError` if the weights do not fit into memory, `UsageError` for an execution provider that is missing.
    """
    if backend == "numpy":
        from tofc.model.numpy_tower import NumpyTower

        return NumpyTower(checkpoint, threads=threads or 1)
    if backend == "onnx":
        from tofc.model.onnx_tower import OnnxTower

        return OnnxTower(checkpoint, int8=dtype == "int8", threads=threads or 1, provider=provider)
    from tofc.model.torch_threads import set_torch_threads, use_passive_waiting

    use_passive_waiting()  # before torch is imported
    import torch

    from tofc.model.tower import Tower

    set_torch_threads(threads)
    return Tower(checkpoint, getattr(torch, dtype), device)
