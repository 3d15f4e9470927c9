"""The vision tower: pixels [B, 3, H, W] → features [B, N, 4 × width].

Promises no more memory than the weights take in the type asked for, of which those stored in it stay in their file.
Leaves normalising pixels to ``views``, the computation to ``perception_encoder``.
"""

from __future__ import annotations

import ctypes
import sys
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from shared.model.checkpoint import Checkpoint
from shared.model.int8 import Int8Linear
from shared.model.mapped import Mapped
from shared.model.perception_encoder import PerceptionEncoder
from shared.model.released_names import VISION, from_released
from shared.model.room import need_memory

_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE_BLOCK = 1 << 20  # bytes


class Tower:
    """A loaded tower on ``device``. Safe to use from one thread at a time.

    >>> tower = Tower(Checkpoint.open(path, side="device"))                # doctest: +SKIP
    >>> features = tower.encode(np.zeros((1, 3, 336, 336), np.float32))    # doctest: +SKIP
    >>> features.shape                                                     # doctest: +SKIP
    (1, 36, 768)
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        """Read the tower's tensors into ``dtype``.

        Raises ``RoomError`` if they do not fit a CPU's memory.

        ``torch.int8``, on a CPU: the transformer's linear layers in it, everything else in bfloat16.
        """
        self.config = checkpoint.config
        self.dtype = torch.bfloat16 if dtype == torch.int8 else dtype
        self.device = torch.device(device)
        _give_large_blocks_back()
        self.model = _load(checkpoint, self.dtype, self.device, int8=dtype == torch.int8)

    @property
    def weight_bytes(self) -> int:
        """What the weights take in memory, mapped ones included."""
        rounded = (module.buffers() for module in self.model.modules() if isinstance(module, Int8Linear))
        return sum(one.nbytes for one in chain(self.model.parameters(), *rounded))

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised pixels [B, 3, S, S] → features [B, N, D], row by row, N = ``config.grid(S)`` squared.

        Raises ``ValueError`` for another shape or a side that is no multiple of the patch.
        """
        patch = self.config.patch
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] != pixels.shape[3] or pixels.shape[2] % patch:
            raise ValueError(
                f"pixels are {pixels.shape}; the tower takes [B, 3, S, S] with S a multiple of {patch}: use views()"
            )
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32)).to(self.device, self.dtype)
            features = self.model(x)  # [B, N, D]
            found: NDArray[np.float32] = features.float().cpu().contiguous().numpy()
        return found


def _give_large_blocks_back() -> None:
    """Freed blocks of up to 32 MiB are kept by glibc for later; a view's tensors then take a third more room."""
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def _load(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, *, int8: bool) -> PerceptionEncoder:
    mapped = Mapped({name: one for name, one in checkpoint.stored.items() if name.startswith(VISION)})
    if device.type == "cpu":
        kind = torch.int8 if int8 else dtype
        copied = sum(tensor.numel() for tensor in mapped.tensors.values() if tensor.dtype != kind)
        need_memory(copied * kind.itemsize, f"the vision tower in {str(kind).removeprefix('torch.')}")
    with torch.device("meta"):  # a skeleton: the checkpoint's tensors become its parameters
        model = PerceptionEncoder(checkpoint.config.vision)
    state = from_released({name.removeprefix(VISION): tensor for name, tensor in mapped.tensors.items()})
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
