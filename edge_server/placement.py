"""Where the server's networks compute, in which number format, and whether they fit there.

Promises that what cannot fit is refused before it is loaded, and that an out-of-memory error of any library becomes one
that says what to do. Leaves loading to `engine_loading` and `backend`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edge_server.settings import ServerSettings
from edge_server.token_embedding import TABLE
from tofc.errors import CheckpointError
from tofc.model.checkpoint import Checkpoint
from tofc.model.released_names import DECODER, VISION
from tofc.model.resources import require_memory
from tofc.model.torch_devices import AUTO, default_dtype
from tofc.out_of_memory import out_of_memory

if TYPE_CHECKING:
    import torch


def compute_dtype(checkpoint: Checkpoint, settings: ServerSettings) -> torch.dtype:
    """Return the number format of the networks in this process."""
    import torch

    name = settings.dtype
    if name == AUTO:
        name = default_dtype(settings.device, checkpoint.stored[TABLE].dtype)
    found: torch.dtype = getattr(torch, name)
    return found


def require_networks_memory(checkpoint: Checkpoint, settings: ServerSettings) -> None:
    """Check, before anything is loaded, that decoder and tower fit into memory together. Raises ResourceError.

    The decoder alone is checked where it is loaded.
    """
    if not settings.take_images:
        return
    dtype = compute_dtype(checkpoint, settings)
    parts = (*DECODER, VISION) if settings.engine == "embedded" else (VISION,)
    what = f"{'the decoder with ' * (len(parts) > 1)}the vision tower, which --take-images needs,"
    size = checkpoint.parameter_count(parts) * dtype.itemsize
    require_memory(size, f"{what} in {str(dtype).removeprefix('torch.')}", settings.device)


@contextmanager
def out_of_memory_said(what: str, checkpoint: Checkpoint, settings: ServerSettings) -> Iterator[None]:
    """Turn an out-of-memory error of any library into a CheckpointError that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        dtype = str(compute_dtype(checkpoint, settings)).removeprefix("torch.")
        raise CheckpointError(
            f"{what} in {checkpoint.path} could not be loaded on {settings.device} in {dtype} ({error}); use --dtype "
            "bfloat16, or a device with more memory"
        ) from error
