"""The vision tower: pixels [B, 3, H, W] → features [B, N, 4 × width].

Promises that loading takes hardly more memory than the weights in the dtype asked for; weights stored in it stay
memory-mapped. Leaves normalising pixels to `views`, the computation to `perception_encoder`.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, islice

import numpy as np
import torch
from numpy.typing import NDArray

from tofc.model.checkpoint import Checkpoint
from tofc.model.int8 import Int8Linear
from tofc.model.mapped_tensors import MappedTensors
from tofc.model.perception_encoder import PerceptionEncoder
from tofc.model.released_names import VISION, from_released
from tofc.model.resources import require_memory
from tofc.model.vision_tower import check_pixels

_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE_BLOCK_BYTES = 1 << 20
BATCH = 8  # views that an accelerator computes at once, at most


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
        """Compute what `encode` returns, as a float32 tensor on the tower's device."""
        check_pixels(pixels, self.config.patch)
        x = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32)).to(self.device, self.dtype)
        found: torch.Tensor = self.model(x).float()  # [B, N, D]
        return found

    def encode_views(self, views: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Encode the views [3, S, S] of a picture, in their order, as features [N, D] each.

        On an accelerator views of one size that follow each other are computed together, up to `BATCH`.
        """
        found: list[NDArray[np.float32]] = []
        for _, same in groupby(views, key=lambda view: view.shape):
            for some in _batched(same, 1 if self.device.type == "cpu" else BATCH):
                found += list(self.encode(np.stack(some)))
        return found


def _batched(items: Iterable[NDArray[np.float32]], size: int) -> Iterator[list[NDArray[np.float32]]]:
    """Split into lists of at most `size`: `itertools.batched` is newer than the oldest Python here."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def _return_large_blocks() -> None:
    """Make glibc return large blocks to the system when they are freed.

    By default it keeps blocks of up to 32 MiB, which makes the peak a third higher.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def _load(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, *, int8: bool) -> PerceptionEncoder:
    mapped = MappedTensors({name: stored for name, stored in checkpoint.stored.items() if name.startswith(VISION)})
    if device.type == "cpu":
        kind = torch.int8 if int8 else dtype
        copied = sum(tensor.numel() for tensor in mapped.tensors.values() if tensor.dtype != kind)
        require_memory(copied * kind.itemsize, f"the vision tower in {str(kind).removeprefix('torch.')}")
    with torch.device("meta"):  # allocates nothing: the checkpoint's tensors become its parameters
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
