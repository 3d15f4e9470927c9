"""Endless training batches, prepared ahead of time by another process.

Promises that batch `step` depends only on `step` and on what the batches are made from, so that a resumed run sees
the same batches as an uninterrupted one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from itertools import count
from typing import TypeVar

from torch.utils.data import DataLoader, IterableDataset

T = TypeVar("T")


class Batches(IterableDataset[T]):
    """Batches from step `first` on."""

    first: int

    @abstractmethod
    def draw(self, step: int) -> T:
        """Return batch `step`."""

    def __iter__(self) -> Iterator[T]:
        return map(self.draw, count(self.first))

    def ahead(self, workers: int = 1) -> Iterator[T]:
        """Yield the batches, prepared in another process: a thread would compete for the interpreter's lock."""
        return iter(DataLoader(self, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None))
