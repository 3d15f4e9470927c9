"""Work that a thread does ahead of its use, so that an accelerator does not wait for files.

Promises the results in order, errors included, each when its turn comes. Leaves the work itself to the caller; it runs
in a thread of its own, one piece at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

AHEAD = 2  # results that are kept ready, at most
T = TypeVar("T")
R = TypeVar("R")


def prefetched(items: Iterable[T], work: Callable[[T], R]) -> Iterator[R]:
    """Yield `work(item)` for each item, computed before it is asked for. Work that is not used is given up.

    >>> list(prefetched([3, 1, 2], lambda number: number * number))
    [9, 1, 4]
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="tofc-prefetch")
    try:
        rest = iter(items)
        pending: deque[Future[R]] = deque(pool.submit(work, item) for item in islice(rest, AHEAD))
        while pending:
            found = pending.popleft().result()
            pending.extend(pool.submit(work, item) for item in islice(rest, 1))
            yield found
    finally:
        pool.shutdown(cancel_futures=True)
