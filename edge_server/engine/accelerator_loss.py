"""Whether an error means that a GPU, or this process's connection to it, is lost for good.

Promises to recognise the errors after which every further call fails until the process ends: illegal memory accesses,
failed assertions on the device, ECC errors, a card that fell off the bus. Leaves running out of memory to
`tofc.out_of_memory`, because it passes.
"""

from __future__ import annotations

import re

from tofc.out_of_memory import out_of_memory

_LOST = re.compile(r"(CUDA|HIP|XPU|cuBLAS|cuDNN) error|device-side assert|unspecified launch failure|device lost", re.I)


def accelerator_lost(error: BaseException) -> bool:
    """Tell whether nothing more can be computed on the device that raised this error.

    >>> accelerator_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))
    True
    >>> accelerator_lost(RuntimeError("CUDA error: out of memory"))
    False
    >>> accelerator_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    found = isinstance(error, RuntimeError) and bool(_LOST.search(str(error)))
    return found and not out_of_memory(error)
