"""How many threads numpy's linear algebra takes: one.

The codec's products are small. With threads of their own beside torch's, each waits for the other: on two cores a
view's coding took 16 ms instead of 2, and the tower three times as long. Leaves torch's threads to
`shared.model.threads`.
"""

from __future__ import annotations

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]


def use_one_blas_thread() -> None:
    """For this process, from now on. Results do not change: nothing depends on how a sum is split."""
    for library in ThreadpoolController().lib_controllers:
        if "numpy" in library.filepath:
            library.set_num_threads(1)
