"""How much memory the keys and values of a prompt and its answers take."""

from __future__ import annotations

import torch

from edge_server.engine.kv_cache import CacheShape, KeyValueCache

SHAPE = CacheShape(layers=2, heads=1, head_dim=3, dtype=torch.float32, device=torch.device("cpu"))


def add(cache: KeyValueCache, count: int) -> int:
    """Add rows, and return the address of the cache's memory."""
    cache.reserve(count)
    for layer in range(SHAPE.layers):
        cache.write(layer, torch.full((2, 1, count, 3), float(cache.length)))
    cache.advance(count)
    return cache.read(0, cache.length).data_ptr() if cache.nbytes else 0


def test_room_for_all_rows_is_allocated_once_and_nothing_beyond() -> None:
    prompt = KeyValueCache(SHAPE, 4096)
    assert prompt.nbytes == 0
    assert len({add(prompt, 256) for _ in range(16)}) == 1
    assert prompt.nbytes == 4096 * SHAPE.row_bytes
    answer = prompt.fork(100)
    for _ in range(100):
        add(answer, 1)
        assert answer.nbytes == 100 * SHAPE.row_bytes


def test_a_copy_has_room_for_the_rest_of_its_prompt() -> None:
    kept = KeyValueCache(SHAPE, 32)
    add(kept, 32)
    prompt = kept.copy(16, 700)
    assert (prompt.length, prompt.nbytes) == (16, 700 * SHAPE.row_bytes)
    assert len({add(prompt, 171) for _ in range(4)}) == 1
    assert prompt.nbytes == 700 * SHAPE.row_bytes
    assert torch.equal(prompt.read(1, 16), kept.read(1, 16))


def test_a_cache_made_for_too_few_rows_takes_more() -> None:
    cache = KeyValueCache(SHAPE, 2)
    add(cache, 2)
    add(cache, 1)
    assert cache.nbytes == 3 * SHAPE.row_bytes
    assert cache.read(0, 3)[0, 0, :, 0].tolist() == [0, 0, 2]
