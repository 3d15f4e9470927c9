"""Whether an error means that memory was short, whoever raised it.

Promises to know Python's, numpy's and the system's errors by their kind, torch's and some decoders' by their words,
without importing them; where a decoder tells nothing, whether there was room can be asked. Leaves what to say about it
to whoever wanted the memory.
"""

from __future__ import annotations

import errno
import mmap
import re

_WORDS = re.compile(
    r"out of memory|not enough memory|can(no|')t allocate|failed to allocate|memory allocation|bad_alloc|"
    r"can't start new thread",
    re.I,
)


def out_of_memory(error: BaseException) -> bool:
    """
    >>> out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."))
    True
    >>> out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    if isinstance(error, BaseExceptionGroup):
        return all(out_of_memory(one) for one in error.exceptions)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or bool(_WORDS.search(str(error)))


def room_for(size: int) -> bool:
    """Whether the system gives so many bytes; they are given back untouched.

    >>> room_for(1), room_for(1 << 60)
    (True, False)
    """
    try:
        mmap.mmap(-1, size).close()
    except OSError:
        return False
    return True
