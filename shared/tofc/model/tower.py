"""The vision tower in torch: pixels [B, 3, S, S] → features [B, N, D].

Promises that loading takes hardly more memory than the weights in the dtype asked for; weights stored in it stay
memory-mapped. Leaves normalising pixels to `views`, the computation to the tower's network.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from tofc.model.checkpoint import Checkpoint
from tofc.model.int8 import Int8Linear
from tofc.model.mapped_tensors import MappedTensors
from tofc.model.perception_encoder import in_blocks
from tofc.model.released_names import VISION
from tofc.model.resources import require_memory
from tofc.model.torch_devices import free_device_memory_bytes
from tofc.model.vision_tower import check_pixels, in_parts
from tofc.out_of_memory import out_of_memory

_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE_BLOCK_BYTES = 1 << 20
BATCH = 8  # views that an accelerator computes at once, at most
SHARE = 0.5  # of its free memory that they may take: answers need some too


class Tower:
    """A loaded tower on `device`. Safe to use from one thread at a time.

    >>> tower = Tower(Checkpoint.open(path, side="device"))                # doctest: +SKIP
    >>> features = tower.encode(np.zeros((1, 3, 336, 336), np.float32))    # doctest: +SKIP
    >>> features.shape                                                     # doctest: +SKIP
    (1, 36, 768)
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        """Load the tower's tensors in `dtype`.

        `torch.int8` is for CPUs only: the transformer's linear layers are in int8, everything else is in bfloat16.
        Raises `ResourceError` if the weights do not fit into the CPU's memory.
        """
        self.config = checkpoint.config
        self.dtype = torch.bfloat16 if dtype == torch.int8 else dtype
        self.device = torch.device(device)
        if self.device.type == "cuda" and dtype == torch.float32:
            torch.backends.cudnn.allow_tf32 = False  # as torch's matrix products: float32 has 24 bits, TF32 has 11
        _return_large_blocks()
        self.model = _load(checkpoint, self.dtype, self.device, int8=dtype == torch.int8)

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights, including memory-mapped ones."""
        int8 = (module.buffers() for module in self.model.modules() if isinstance(module, Int8Linear))
        return sum(tensor.nbytes for tensor in chain(self.model.parameters(), *int8))

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Encode normalised pixels [B, 3, S, S] as features [B, N, D], row by row, N = `config.grid(S)` squared.

        Raises `UsageError` for another shape, or a side that is not a multiple of the patch size.
        """
        found: NDArray[np.float32] = self.features(pixels).cpu().contiguous().numpy()
        return found

    @torch.inference_mode()
    def features(self, pixels: NDArray[np.float32]) -> torch.Tensor:
        """Compute what `encode` returns, as a float32 tensor on the tower's device.

        Where an accelerator's memory is too small for all views, it computes half of them at a time, and so on; and if
        it is too small for one, blocks of its tokens.
        """
        check_pixels(pixels, self.config.tower)
        x = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32)).to(self.device, self.dtype)
        return self._computed(x)

    def _computed(self, x: torch.Tensor) -> torch.Tensor:  # [B, 3, S, S] → [B, N, D]
        try:
            found: torch.Tensor = self.model(x).float()
            return found
        except Exception as error:
            if self.device.type == "cpu" or not out_of_memory(error):
                raise
        # Out of the handler: the error's traceback would keep what was computed.
        if len(x) > 1:
            half = (len(x) + 1) // 2
            return torch.cat([self._computed(some) for some in x.split(half)])
        with in_blocks():
            found = self.model(x).float()
        return found

    def at_once(self, side: int) -> int:
        """Return how many views of `side` px are best computed together: on an accelerator as many as fit its memory.

        On a CPU one: more would take more memory and no less time.
        """
        if self.device.type == "cpu":
            return 1
        free = free_device_memory_bytes(str(self.device))
        bytes_each = self.config.tower.view_bytes(side, self.dtype.itemsize)
        return BATCH if free is None else max(1, min(BATCH, int(free * SHARE) // bytes_each))

    def encode_views(self, views: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Encode the views [3, S, S] of a picture, in their order, as features [N, D] each.

        Views of one size that follow each other are computed together, see `at_once`.
        """
        parts = in_parts([view.shape[-1] for view in views], self.at_once)
        return [one for part in parts for one in self.encode(np.stack(views[part.start : part.stop]))]


def _return_large_blocks() -> None:
    """Make glibc return large blocks to the system when they are freed.

    By default it keeps blocks of up to 32 MiB, which makes the peak a third higher.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def _load(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, *, int8: bool) -> torch.nn.Module:
    mapped = MappedTensors({name: stored for name, stored in checkpoint.stored.items() if name.startswith(VISION)})
    if device.type == "cpu":
        kind = torch.int8 if int8 else dtype
        copied = sum(tensor.numel() for tensor in mapped.tensors.values() if tensor.dtype != kind)
        require_memory(copied * kind.itemsize, f"the vision tower in {str(kind).removeprefix('torch.')}")
    with torch.device("meta"):  # allocates nothing: the checkpoint's tensors become its parameters
        model = checkpoint.config.tower.network()
    stored = {name.removeprefix(VISION): tensor for name, tensor in mapped.tensors.items()}
    state = checkpoint.config.tower.state(stored)
    model.load_state_dict(state, assign=True)  # names and shapes were checked when the checkpoint was opened
    if int8:
        for name, module in list(model.named_modules()):
            if isinstance(module, torch.nn.Linear):
                model.set_submodule(name, Int8Linear(module))
                mapped.release()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(device, dtype)
        mapped.release()
    return model.eval().requires_grad_(False)
