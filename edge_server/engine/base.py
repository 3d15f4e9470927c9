"""What an engine is: prompt embeddings → a stream of token ids, cancellable between two tokens.

Promises that the session's side and the engine's side of one answer may live in different threads.
Leaves turning ids into text, and pictures into embeddings, to others.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.rpc.errors import InvalidRequestError


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """What a decoder reads: one row a position, pictures and text alike."""

    embeds: NDArray[np.float32]  # [T, H]

    def __post_init__(self) -> None:
        if self.embeds.ndim != 2 or not len(self.embeds):
            raise InvalidRequestError(f"a prompt is [T, H] with T of at least 1, not {self.embeds.shape}")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy; a seed belongs to one answer and to nothing else."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InvalidRequestError(f"max_tokens is {self.max_tokens}; an answer has at least 1 token")
        if not 0.0 <= self.temperature <= 100.0:  # also refuses NaN
            raise InvalidRequestError(f"temperature is {self.temperature}; allowed are 0 (greedy) to 100")
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidRequestError(f"top_p is {self.top_p}; allowed is more than 0, up to 1")
        if self.top_k < 0:
            raise InvalidRequestError(f"top_k is {self.top_k}; allowed are 0 (off) and more")


class Finish(Enum):
    """Why an answer ended by itself."""

    STOP = "stop"  # the model said so
    LENGTH = "length"  # max_tokens, or the model's positions, are used up


class Generation:
    """One answer under way: an async iterator of token ids without the stop token.

    The engine calls `begin`, `prefilled`, `put`, then `end` or `fail`, from any thread. The session
    iterates in the loop it was made in; `aclose` makes `cancelled` true, which the engine looks at
    before every step. `finish` is set when the iterator is exhausted. Times are milliseconds.
    """

    def __init__(self, on_close: Callable[[], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[int | Finish | Exception] = asyncio.Queue()  # at most max_tokens + 1 entries
        self._on_close = on_close
        self._when_over: Callable[[], None] = lambda: None
        self._submitted = self._begun = time.perf_counter()
        self.cancelled = False
        self.finish: Finish | None = None
        self.wait_ms = 0.0
        self.prefill_ms = 0.0

    # the engine's side

    def begin(self) -> None:
        """The engine turns to this answer: waiting is over."""
        self._begun = time.perf_counter()
        self.wait_ms = (self._begun - self._submitted) * 1e3

    def prefilled(self) -> None:
        """The prompt has been read."""
        self.prefill_ms = (time.perf_counter() - self._begun) * 1e3

    def put(self, token: int) -> None:
        self._hand_over(token)

    def end(self, finish: Finish) -> None:
        self._hand_over(finish)

    def fail(self, error: Exception) -> None:
        self._hand_over(error)

    def _hand_over(self, item: int | Finish | Exception) -> None:
        if not self.cancelled:  # else nobody listens, and the loop may be gone
            self._loop.call_soon_threadsafe(self._receive, item)

    # the session's side

    def _receive(self, item: int | Finish | Exception) -> None:
        self._arrived.put_nowait(item)
        if not isinstance(item, int):
            self._when_over()

    def when_over(self, call: Callable[[], None]) -> None:
        """To be called once the engine has no more to do for this answer, however late what it said is read."""
        self._when_over = call

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> int:
        if self.finish is not None or self.cancelled:
            raise StopAsyncIteration
        item = await self._arrived.get()
        if isinstance(item, int):
            return item
        if isinstance(item, Finish):
            self.finish = item
            raise StopAsyncIteration
        raise item

    async def aclose(self) -> None:
        """Gives the answer up; the engine stops before its next step. Harmless when it has ended."""
        if not self.cancelled:
            self.cancelled = True
            if self._on_close is not None:
                self._on_close()


class Engine(Protocol):
    """Runs one decoder for everybody."""

    @property
    def name(self) -> str:
        """For GetServerInfo."""

    @property
    def max_positions(self) -> int:
        """The most rows of prompt and answer together."""

    def submit(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Takes a prompt in. Raises LimitError (ENGINE_BUSY) when too many wait already."""

    async def stop(self) -> None:
        """Gives up what is running and frees what it holds."""
