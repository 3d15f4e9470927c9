"""Tensors that stay in their files: memory-mapped, with pages that can be released.

Promises that a tensor takes memory only from its first use to the next `release`, and that it stays usable: its pages
are then read again from the file. Leaves names and checks to `checkpoint`.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch

from tofc.model.tensor_files import StoredTensor

_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class MappedTensors:
    """The stored tensors of a few files, each file mapped once."""

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        """Map the files of `stored`, whose types were checked when the checkpoint was opened."""
        self._files: dict[Path, mmap.mmap] = {}
        for path in {tensor.file for tensor in stored.values()}:
            with path.open("rb") as file:  # copy-on-write: torch wants writable memory, but nothing writes
                self._files[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.tensors = {name: self._tensor(tensor) for name, tensor in stored.items()}

    def _tensor(self, stored: StoredTensor) -> torch.Tensor:
        dtype, count = _TYPES[stored.dtype], prod(stored.shape)
        flat = torch.frombuffer(self._files[stored.file], dtype=dtype, count=count, offset=stored.start)
        return flat.reshape(stored.shape)

    def release(self) -> None:
        """Release the memory of all pages read so far, if the system can (Windows cannot)."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for file in self._files.values():
                file.madvise(mmap.MADV_DONTNEED)
