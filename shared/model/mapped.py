"""Tensors that stay in their files: mapped, not read, and their memory given back on demand.

Promises that a tensor costs memory only while it is used, and that `release` takes no tensor away: what was
given back is read again from its file when it is used again. Leaves names and checks to `checkpoint`.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch

from shared.model.tensor_files import StoredTensor

_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Mapped:
    """The stored tensors of a few files, each file mapped once."""

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        """Map the files of ``stored``, whose types an opened checkpoint has checked."""
        self._files: dict[Path, mmap.mmap] = {}
        for path in {one.file for one in stored.values()}:
            with path.open("rb") as file:  # a private copy of every page written, and none is
                self._files[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.tensors = {name: self._tensor(one) for name, one in stored.items()}

    def _tensor(self, one: StoredTensor) -> torch.Tensor:
        flat = torch.frombuffer(self._files[one.file], dtype=_TYPES[one.dtype], count=prod(one.shape), offset=one.start)
        return flat.reshape(one.shape)

    def release(self) -> None:
        """Give back the memory of everything that was read so far, where the system can (not on Windows)."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for file in self._files.values():
                file.madvise(mmap.MADV_DONTNEED)
