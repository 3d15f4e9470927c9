"""Endless batches that a process of its own draws ahead of the training that uses them.

Promises that batch ``step`` depends on nothing but what the batches were made of and ``step``, so that a
resumed run sees what an uninterrupted one would.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from itertools import count
from typing import TypeVar

from torch.utils.data import DataLoader, IterableDataset

T = TypeVar("T")


class Batches(IterableDataset[T]):
    """Batches from step ``first`` on."""

    first: int

    @abstractmethod
    def draw(self, step: int) -> T:
        """Batch ``step``."""

    def __iter__(self) -> Iterator[T]:
        return map(self.draw, count(self.first))

    def ahead(self, workers: int = 1) -> Iterator[T]:
        """The batches, drawn by another process: a thread would keep the training from the interpreter's lock."""
        return iter(DataLoader(self, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None))
