"""Whether an error means that memory ran out, whichever library raised it.

Promises to recognise the errors of Python, numpy and the system by type, those of torch and some image decoders by
their message, without importing these libraries. Some decoders fail without a reason: then `can_allocate` shows whether
memory was short. Leaves the message for the user to the caller.
"""

from __future__ import annotations

import errno
import mmap
import re

_MESSAGES = re.compile(
    r"out of memory|not enough memory|can(no|')t allocate|failed to allocate|memory allocation|bad_alloc|"
    r"can't start new thread|"
    r"out_of_memory|out_of_(device|host)_memory|alloc_failed|insufficient_resources|invalid buffer size",  # of GPUs
    re.I,
)


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error, or every error of a group, means that memory ran out.

    >>> out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."))
    True
    >>> out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    >>> out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    True
    """
    if isinstance(error, BaseExceptionGroup):
        return all(out_of_memory(one) for one in error.exceptions)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or bool(_MESSAGES.search(str(error)))


def can_allocate(size_bytes: int) -> bool:
    """Tell whether the system would allocate this many bytes; they are freed at once, untouched.

    >>> can_allocate(1), can_allocate(1 << 60)
    (True, False)
    """
    try:
        mmap.mmap(-1, size_bytes).close()
    except OSError:
        return False
    return True
