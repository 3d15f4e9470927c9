"""Keys and values of earlier prompts, so that the next one of the same client re-reads only what is new.

    prompt [T, H] ─ blocks of rows ─ a key for each, chained ─→ the kept cache with the longest equal beginning

Promises that a client finds only what its own prompts left, because its name begins the chain of keys, and that a
prompt without a client leaves nothing. Only whole blocks of prompts are kept: attention over a block has the same bits
whenever it is computed; over an answer's tokens, one row at a time, it has others. Leaves the number of bytes to its
caller.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from edge_server.engine.base import Prompt
from edge_server.engine.kv_cache import KeyValueCache
from tofc.out_of_memory import out_of_memory

KEY_BYTES = 16


def block_keys(prompt: Prompt, block: int) -> list[bytes]:
    """Return a key for every whole block of `block` rows, which depends on the client and on all rows up to its end."""
    if not prompt.client:
        return []
    keys: list[bytes] = []
    key = hashlib.blake2b(prompt.client.encode(), digest_size=KEY_BYTES).digest()
    for end in range(block, len(prompt.embeds) + 1, block):
        rows = prompt.embeds[end - block : end].tobytes()
        key = hashlib.blake2b(rows, key=key, digest_size=KEY_BYTES).digest()
        keys.append(key)
    return keys


@dataclass(eq=False, kw_only=True)
class _Entry:
    cache: KeyValueCache
    keys: Sequence[bytes]
    current: int  # how many of its keys lead to it; a longer prompt takes over those that it shares
    in_use: bool = True


class PrefixCache:
    """Maps the blocks of earlier prompts to their keys and values; the least recently used are dropped first."""

    def __init__(self, block: int) -> None:
        self._block = block
        self._entries: OrderedDict[KeyValueCache, _Entry] = OrderedDict()  # least recently used first
        self._index: dict[bytes, tuple[_Entry, int]] = {}  # key of a block → where it is, rows up to its end

    @property
    def idle_bytes(self) -> int:
        """Bytes of the caches that no answer uses at the moment."""
        return sum(entry.cache.nbytes for entry in self._entries.values() if not entry.in_use)

    def find(self, keys: Sequence[bytes], most: int) -> tuple[KeyValueCache, int] | None:
        """Return a cache and how many of its rows, at most `most`, a prompt with these keys begins with."""
        for key in reversed(keys[: most // self._block]):
            if key in self._index:
                entry, rows = self._index[key]
                self._entries.move_to_end(entry.cache)
                return entry.cache, rows
        return None

    def add(self, keys: Sequence[bytes], cache: KeyValueCache) -> None:
        """Offer the rows of a prompt that was read to later ones. It stays until `release`, and then while it fits."""
        if not keys:
            return
        entry = _Entry(cache=cache, keys=keys, current=len(keys))
        for number, key in enumerate(keys, 1):
            if key in self._index:
                old = self._index[key][0]
                old.current -= 1
                self._drop_if_useless(old)
            self._index[key] = (entry, number * self._block)
        self._entries[cache] = entry

    def release(self, cache: KeyValueCache) -> None:
        """Note that no answer uses this cache any more, and free all but the rows that are kept."""
        entry = self._entries.get(cache)
        if entry is not None:
            entry.in_use = False
            self._drop_if_useless(entry)
            if entry.current:
                try:
                    cache.shrink(len(entry.keys) * self._block)
                except Exception as error:
                    if not out_of_memory(error):
                        raise
                    self._remove(entry)

    def shrink(self, limit: int) -> None:
        """Drop what is not in use until at most `limit` bytes of it are left."""
        size = self.idle_bytes
        for entry in list(self._entries.values()):
            if size <= limit:
                return
            if not entry.in_use:
                size -= entry.cache.nbytes
                self._remove(entry)

    def _drop_if_useless(self, entry: _Entry) -> None:
        if not entry.current and not entry.in_use:
            self._remove(entry)

    def _remove(self, entry: _Entry) -> None:
        self._entries.pop(entry.cache, None)
        for key in entry.keys:
            if key in self._index and self._index[key][0] is entry:
                del self._index[key]
