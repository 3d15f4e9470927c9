"""The vision tower on ONNX Runtime: pixels [B, 3, S, S] → features [B, N, D], without torch.

    checkpoint ─ its tensors, float32 ─ TowerConfig.onnx ─ graph ─ InferenceSession ─→ features

Promises one graph for all sizes of views, the same features whatever the number of threads, and an error for an
execution provider that is missing. Leaves which towers have a graph to their `TowerConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tofc.errors import UsageError
from tofc.model.checkpoint import Checkpoint
from tofc.model.released_names import VISION
from tofc.model.resources import require_memory
from tofc.model.vision_tower import check_pixels

Array = NDArray[np.float32]
_SUFFIX = "ExecutionProvider"
CPU = "CPU"


class OnnxTower:
    """A loaded tower. Safe to use from one thread at a time."""

    def __init__(
        self, checkpoint: Checkpoint, *, int8: bool = False, threads: int = 1, provider: str | None = None
    ) -> None:
        """Load the tower's tensors and let ONNX Runtime prepare them.

        `provider` is one of `execution_providers()`; None is the CPU. Raises `ImportError` without ONNX Runtime,
        `UsageError` for a provider that it does not have, `ResourceError` if the weights do not fit into memory.
        """
        import onnxruntime

        self.config = checkpoint.config
        stored = {name: one for name, one in checkpoint.stored.items() if name.startswith(VISION)}
        size = sum(math.prod(one.shape) for one in stored.values())
        require_memory(2 * 4 * size, "the vision tower in float32, as stored and as ONNX Runtime reorders it")
        weights = {name.removeprefix(VISION): one.array() for name, one in stored.items()}
        graph = self.config.tower.onnx(weights, int8=int8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.use_deterministic_compute = True
        options.log_severity_level = 4  # nothing: errors are raised too, warnings would be printed over answers
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting takes no processor time
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(one) for one in graph.weights.values()]
        options.add_external_initializers(list(graph.weights), values)
        wanted = provider_name(provider) if provider else CPU + _SUFFIX
        names = [wanted] if wanted == CPU + _SUFFIX else [wanted, CPU + _SUFFIX]
        with _as_runtime_errors():
            self._session = onnxruntime.InferenceSession(graph.model(), options, providers=names)
        if wanted not in self._session.get_providers():  # ONNX Runtime only warns
            raise UsageError(
                f"--execution-provider {provider} could not be loaded by ONNX Runtime: its libraries are missing or "
                "find no device; install them, or leave the option out"
            )
        self._needed = self.config.tower.onnx_kept(weights)

    def at_once(self, side: int) -> int:
        """Return 1: more views together would take more memory and no less time."""
        return 1

    def encode(self, pixels: Array) -> Array:
        """Encode normalised pixels [B, 3, S, S] as features [B, N, D], row by row, N = `config.grid(S)` squared.

        Raises `UsageError` for another shape, or a side that the tower does not take.
        """
        check_pixels(pixels, self.config.tower)
        return np.stack([self._view(one) for one in pixels.astype(np.float32, copy=False)])

    def _view(self, pixels: Array) -> Array:  # [3, S, S] → [N, D]
        with _as_runtime_errors():
            found: list[Any] = self._session.run(None, self.config.tower.onnx_inputs(pixels, self._needed))
        features: Array = found[0]
        return features.reshape(-1, self.config.feature_dim)


@contextmanager
def _as_runtime_errors() -> Iterator[None]:
    """Raise ONNX Runtime's errors, which have a base of their own, as torch's: `out_of_memory` reads both."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise RuntimeError(str(error)) from error


def execution_providers() -> list[str]:
    """Return the names of the execution providers that this ONNX Runtime has. Raises `ImportError` without it."""
    import onnxruntime

    return [name.removesuffix(_SUFFIX) for name in onnxruntime.get_available_providers()]


def provider_name(given: str) -> str:
    """Return ONNX Runtime's name of a provider, whatever the case. Raises `UsageError`, which lists those it has."""
    available = execution_providers()
    for name in available:
        if name.lower() == given.lower():
            return name + _SUFFIX
    raise UsageError(
        f"--execution-provider must be one that ONNX Runtime has here ({', '.join(available)}), got {given}; another "
        "one needs its own build of ONNX Runtime, such as onnxruntime-gpu, in the place of onnxruntime"
    )
