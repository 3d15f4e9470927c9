"""The keys and values of one prompt or answer, all layers in one tensor.

    prompt's cache  [layers, 2, kv heads, rows, D] ←─ fork ─ sample's cache: its own rows, after those of the prompt
                                                    └ fork ─ sample's cache

Promises that a failed step leaves a cache as it was: `write` does not count rows, `advance` does, after all layers; and
that the rows that a cache is made for are allocated once, so that it never holds old and new ones at the same time.
Leaves to `prefix_cache` which caches are kept, and to `schedule` how much memory they may take together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from edge_server.engine.static_decoder import StaticStep


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """What the caches of one model have in common."""

    layers: int
    heads: int  # of keys and values
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, config: Any, dtype: torch.dtype, device: torch.device) -> CacheShape:
        """Return the shape for the configuration of a Qwen3."""
        return cls(
            layers=config.num_hidden_layers,
            heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            dtype=dtype,
            device=device,
        )

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's keys and values in all layers."""
        return self.layers * 2 * self.heads * self.head_dim * self.dtype.itemsize

    def empty(self, rows: int) -> Tensor:
        """Allocate [layers, 2, kv heads, rows, D]."""
        return torch.empty(self.layers, 2, self.heads, rows, self.head_dim, dtype=self.dtype, device=self.device)


class KeyValueCache:
    """Holds the keys and values of rows 0 … `length` - 1; a fork shares those of the cache it was made from.

    Room for `rows` rows of its own is allocated with the first one; more are added one by one.
    """

    def __init__(self, shape: CacheShape, rows: int = 0, *, shared: KeyValueCache | None = None) -> None:
        self._shape = shape
        self._rows = rows
        self._shared = shared
        self._before: int = shared.length if shared is not None else 0  # shared rows, which nobody changes any more
        self._own = shape.empty(0)  # [layers, 2, kv heads, capacity, D]
        self.length: int = self._before
        #: what `static_decoder` made for the memory that the rows have now
        self.static: StaticStep | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are its own, and of the room for more."""
        return self._own.shape[3] * self._shape.row_bytes

    def fork(self, rows: int = 0) -> KeyValueCache:
        """Return a cache for `rows` rows after these, which it does not copy; nothing may be added to this one."""
        return KeyValueCache(self._shape, rows, shared=self)

    def copy(self, copied: int, rows: int = 0) -> KeyValueCache:
        """Return a cache for `rows` rows with a copy of the first `copied` ones."""
        made = KeyValueCache(self._shape, rows)
        made.reserve(copied)
        for layer in range(self._shape.layers):
            made.write(layer, self.read(layer, copied))
        made.advance(copied)
        return made

    def reserve(self, rows: int) -> None:
        """Make room for `rows` more rows."""
        used = self.length - self._before
        if used + rows > self._own.shape[3]:
            grown = self._shape.empty(max(used + rows, self._rows))
            grown[:, :, :, :used] = self._own[:, :, :, :used]
            self._own, self.static = grown, None

    def shrink(self, rows: int) -> None:
        """Forget what comes after the first `rows` rows, and the room for more."""
        self._own, self.static = self._own[:, :, :, : rows - self._before].clone(), None
        self.length = rows

    def clear_uncounted(self) -> tuple[Tensor, int]:
        """Return its own rows [layers, 2, kv heads, capacity, D], zeros where none is counted, and how many it shares.

        Zeros, because even hidden rows take part in sums: with a weight of 0, which times NaN is NaN.
        """
        self._own[:, :, :, self.length - self._before :] = 0
        return self._own, self._before

    def shared_rows(self) -> list[Tensor]:
        """Return the shared keys and values [2, kv heads, rows, D] of each layer; nothing if it shares none."""
        if self._shared is None:
            return []
        return [self._shared.read(layer, self._before) for layer in range(self._shape.layers)]

    def write(self, layer: int, rows: Tensor) -> None:
        """Store keys and values [2, kv heads, n, D] of one layer after the rows that are counted already."""
        used = self.length - self._before
        self._own[layer, :, :, used : used + rows.shape[2]] = rows

    def advance(self, rows: int) -> None:
        """Count rows that were written in all layers."""
        self.length += rows

    def read(self, layer: int, rows: int) -> Tensor:
        """Return keys and values [2, kv heads, rows, D] of one layer, also of rows that are not counted yet."""
        own = self._own[layer, :, :, : rows - self._before]
        if self._shared is None:
            return own
        return torch.cat([self._shared.read(layer, self._before), own], dim=2)
