"""The interface of engines: prompt embeddings → a stream of token ids, which can be cancelled between two tokens.

Promises that the session and the engine may use one answer from different threads. Leaves ids → text to `detokenizer`,
and pictures → embeddings to `assemble`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_server.engine.sampling import SamplingParams
from tofc.errors import InvalidRequestError


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """The input of a decoder: one row for each position, of pictures and text alike."""

    embeds: NDArray[np.float32]  # [T, H]

    def __post_init__(self) -> None:
        if self.embeds.ndim != 2 or not len(self.embeds):
            raise InvalidRequestError(f"a prompt must be [T, H] with T at least 1, got {self.embeds.shape}")


class Finish(Enum):
    """Why an answer ended without being cancelled."""

    STOP = "stop"  # the model generated a stop token
    LENGTH = "length"  # max_tokens, or the model's positions, are used up


class Generation:
    """One answer while it is generated: an async iterator of token ids, without the stop token.

    The engine calls `begin`, `prefilled`, `put`, then `end` or `fail`, from any thread. The session iterates, in the
    event loop that was running when this was made; `aclose` sets `cancelled`, which the engine checks before every
    step. `finish` is set when the iterator is exhausted.
    """

    def __init__(self, on_close: Callable[[], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[int | Finish | Exception] = asyncio.Queue()  # at most max_tokens + 1 entries
        self._on_close = on_close
        self._on_finished: Callable[[], None] = lambda: None
        self._submitted = self._started = time.perf_counter()
        self.cancelled = False
        self.finish: Finish | None = None
        self.wait_ms = 0.0
        self.prefill_ms = 0.0

    # the engine's side

    def begin(self) -> None:
        """Note that the engine starts with this answer, which ends `wait_ms`."""
        self._started = time.perf_counter()
        self.wait_ms = (self._started - self._submitted) * 1e3

    def prefilled(self) -> None:
        """Note that the prompt has been processed, which ends `prefill_ms`."""
        self.prefill_ms = (time.perf_counter() - self._started) * 1e3

    def put(self, token: int) -> None:
        """Hand a token to the session."""
        self._hand_over(token)

    def end(self, finish: Finish) -> None:
        """Tell the session that the answer is complete."""
        self._hand_over(finish)

    def fail(self, error: Exception) -> None:
        """Tell the session that the answer failed; its iterator raises `error`."""
        self._hand_over(error)

    def _hand_over(self, item: int | Finish | Exception) -> None:
        if not self.cancelled:  # else nobody reads it, and the loop may be closed
            self._loop.call_soon_threadsafe(self._receive, item)

    # the session's side

    def _receive(self, item: int | Finish | Exception) -> None:
        self._items.put_nowait(item)
        if not isinstance(item, int):
            self._on_finished()

    def on_finished(self, call: Callable[[], None]) -> None:
        """Call `call` once the engine is done with this answer, even if the session has not read its tokens yet."""
        self._on_finished = call

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> int:
        if self.finish is not None or self.cancelled:
            raise StopAsyncIteration
        item = await self._items.get()
        if isinstance(item, int):
            return item
        if isinstance(item, Finish):
            self.finish = item
            raise StopAsyncIteration
        raise item

    async def aclose(self) -> None:
        """Cancel the answer; the engine stops before its next step. Harmless when it has ended."""
        if not self.cancelled:
            self.cancelled = True
            if self._on_close is not None:
                self._on_close()


class Engine(Protocol):
    """Runs one decoder for all sessions."""

    @property
    def name(self) -> str:
        """The engine's name, as GetServerInfo returns it."""

    @property
    def max_positions(self) -> int:
        """How many tokens prompt and answer may have together."""

    def submit(self, prompt: Prompt, sampling: SamplingParams) -> Generation:
        """Queue a prompt. Raises LimitError (ENGINE_BUSY) if the queue is full, UnavailableError while stopping."""

    async def stop(self) -> None:
        """End all answers and free the engine's resources."""
