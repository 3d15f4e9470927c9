"""An event loop in its own thread, for callers that have none.

Promises that any number of threads may wait for work in it at once, that the work of a thread that is interrupted
(Ctrl-C) is cancelled, that `close` ends everything within seconds, and that the loop ends quietly when its owner is
garbage-collected or the interpreter exits. Leaves what runs in it to the caller.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tofc.errors import CancelledError, UsageError

T = TypeVar("T")
THREAD = "tofc-client"
EXIT_S = 5.0  # the longest that the exit of the interpreter waits for one loop
LEFT_S = 1.0  # for tasks to end by themselves once `finish` has run; then as long again after they are cancelled
_RUNNING: set[LoopThread] = set()


class LoopThread:
    """A loop that the first `run` starts; `finish` is awaited in it at the end."""

    def __init__(self, finish: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._finish = finish
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._failure: Exception | None = None

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run the coroutine that `work` returns and wait for its result.

        Raises what it raises, UsageError after `close`, and CancelledError if `close` is called meanwhile.
        """
        with self._lock:
            if self._closed:
                raise UsageError("this client was closed; make another one")
            if self._loop is None:
                self._start()
            assert self._loop is not None
            future = asyncio.run_coroutine_threadsafe(work(), self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise CancelledError("the client was closed before the answer ended; make another one") from None
        finally:
            future.cancel()  # if this thread was interrupted; otherwise it is done

    def close(self, timeout_s: float | None = None) -> None:
        """End what runs, then the loop; wait up to `timeout_s` for that (0: do not wait). Calling twice is harmless.

        Raises what `finish` raised, if that is known by then.
        """
        with self._lock:
            first, self._closed = not self._closed, True
            if self._loop is None or self._thread is None:
                return
            if first:
                asyncio.run_coroutine_threadsafe(self._end(self._loop), self._loop)
        if timeout_s == 0:
            return
        self._thread.join(timeout_s)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=(self._loop,), name=THREAD, daemon=True)
        _RUNNING.add(self)
        self._thread.start()

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.run_forever()
        finally:
            loop.close()
            _RUNNING.discard(self)

    async def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            await self._finish()
            if left := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(left, timeout=LEFT_S)
            if left := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in left:
                    task.cancel()
                await asyncio.wait(left, timeout=LEFT_S)
            await loop.shutdown_asyncgens()
        except Exception as error:
            self._failure = error
        finally:
            loop.stop()


def _close_all() -> None:
    for one in list(_RUNNING):
        with contextlib.suppress(Exception):
            one.close(EXIT_S)


atexit.register(_close_all)
