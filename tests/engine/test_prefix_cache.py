"""Kept keys and values: who finds them, and which are dropped."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from edge_server.engine.base import Prompt
from edge_server.engine.kv_cache import CacheShape, KeyValueCache
from edge_server.engine.prefix_cache import PrefixCache, block_keys

SHAPE = CacheShape(layers=1, heads=1, head_dim=1, dtype=torch.float32, device=torch.device("cpu"))
BLOCK = 4


def rows(*values: int) -> NDArray[np.float32]:
    return np.array(values, np.float32)[:, None]


def keys(count: int, client: str = "a", other_from: int = 10**6) -> list[bytes]:
    return block_keys(Prompt(embeds=rows(*(n + (n >= other_from) * 100 for n in range(count))), client=client), BLOCK)


def read(count: int) -> KeyValueCache:
    """Make a cache of some rows, as if a prompt had been read."""
    cache = KeyValueCache(SHAPE)
    cache.reserve(count + 3)
    cache.write(0, torch.arange(count, dtype=torch.float32).expand(2, 1, count)[..., None])
    cache.advance(count)
    return cache


def test_keys_depend_on_the_client_and_on_all_rows_before() -> None:
    assert len(keys(3)) == 0 and len(keys(4)) == 1 and len(keys(11)) == 2
    assert keys(11)[:1] == keys(4)
    assert keys(11, other_from=5)[:1] == keys(4) and keys(11, other_from=5)[1] != keys(11)[1]
    assert keys(11, other_from=0)[1] != keys(11)[1]
    assert set(keys(11, "a")).isdisjoint(keys(11, "b"))
    assert keys(11, "") == []


def test_the_longest_common_beginning_in_whole_blocks_is_found() -> None:
    kept = PrefixCache(BLOCK)
    kept.add(keys(13), first := read(13))
    assert kept.find(keys(13), most=12) == (first, 12)
    assert kept.find(keys(12), most=11) == (first, 8)
    assert kept.find(keys(30, other_from=9), most=29) == (first, 8)
    assert kept.find(keys(13, "b"), most=12) is None
    kept.add(keys(20, other_from=9), second := read(20))
    assert kept.find(keys(13), most=12) == (first, 12)
    assert kept.find(keys(20, other_from=9), most=19) == (second, 16)


def test_released_caches_shrink_to_their_blocks_and_useless_ones_are_dropped() -> None:
    kept = PrefixCache(BLOCK)
    kept.add(keys(13), first := read(13))
    assert kept.idle_bytes == 0
    kept.release(first)
    assert (first.length, kept.idle_bytes) == (12, 12 * SHAPE.row_bytes)
    kept.add(keys(21), longer := read(21))  # the next turn: it has all blocks of the first
    assert kept.idle_bytes == 0
    kept.release(longer)
    assert kept.idle_bytes == 20 * SHAPE.row_bytes
    kept.add(keys(21), again := read(21))
    kept.add(keys(25), last := read(25))
    kept.release(again)  # its blocks are all in `last` by now
    kept.release(last)
    assert kept.idle_bytes == 24 * SHAPE.row_bytes
    kept.release(read(7))  # was never added


def test_the_least_recently_used_are_dropped_first_and_none_that_is_in_use() -> None:
    kept = PrefixCache(BLOCK)
    caches = {client: read(8) for client in "abc"}
    for client, cache in caches.items():
        kept.add(keys(8, client), cache)
        if client != "c":
            kept.release(cache)
    assert kept.find(keys(8, "a"), most=8) is not None
    kept.shrink(8 * SHAPE.row_bytes)
    assert kept.find(keys(8, "b"), most=8) is None
    assert kept.find(keys(8, "a"), most=8) is not None
    kept.shrink(0)
    assert kept.find(keys(8, "a"), most=8) is None
    assert kept.find(keys(8, "c"), most=8) == (caches["c"], 8)


def test_forks_share_rows_and_copies_do_not() -> None:
    whole = read(6)
    fork, copy = whole.fork(), whole.copy(5)
    for cache, value in ((fork, 60.0), (copy, 50.0)):
        cache.reserve(1)
        cache.write(0, torch.full((2, 1, 1, 1), value))
        cache.advance(1)
    assert fork.read(0, 7)[0, 0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 60]
    assert copy.read(0, 6)[1, 0, :, 0].tolist() == [0, 1, 2, 3, 4, 50]
    assert whole.read(0, 6)[0, 0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert fork.nbytes < whole.nbytes + 64 * SHAPE.row_bytes
