"""The interface of engines: prompt embeddings → streams of token ids, each cancelled alone between two tokens.

    Prompt [T, H] ─ submit_samples ─→ n × Generation: token ids, then why it ended

Promises that the session and the engine may use one answer from different threads. What belongs to the checkpoint stays
with it: its stop tokens, sampling defaults and token embedding are the same for every engine. Leaves ids → text to
`detokenizer`, and pictures → embeddings to `assemble`.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from edge_server.engine.sampling import SamplingParams
from tofc.errors import InvalidRequestError, UnavailableError


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """The input of a decoder: one row for each position, of pictures and text alike.

    Raises InvalidRequestError for other shapes, and for rows that are not finite.
    """

    embeds: NDArray[np.float32]  # [T, H]
    client: str = ""  # whose it is: engines take turns among clients, and share no cached rows between them
    pictures: str = ""  # identifies its pictures, so that a question about the same ones finds their cached rows

    def __post_init__(self) -> None:
        if self.embeds.ndim != 2 or not len(self.embeds):
            raise InvalidRequestError(f"a prompt must be [T, H] with T at least 1, got {self.embeds.shape}")
        finite = np.isfinite(self.embeds).all(axis=1)
        if not finite.all():
            raise InvalidRequestError(
                f"row {int(finite.argmin())} of the prompt is not finite; send the picture again, or another one",
                reason="PROMPT_NOT_FINITE",
            )


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


@dataclass(frozen=True, kw_only=True)
class EngineLoad:
    """How busy an engine is at this moment."""

    running: int  # answers, each sample counted
    running_allowed: int
    waiting: int
    waiting_allowed: int
    cache_bytes: int = 0  # of keys and values; 0 if the engine does not tell
    cache_bytes_allowed: int = 0


def sample_params(sampling: SamplingParams, samples: int) -> list[SamplingParams]:
    """Return the parameters of each sample of one prompt: sample i has the seed + i, modulo 2^64."""
    return [replace(sampling, seed=(sampling.seed + i) % 2**64) for i in range(samples)]


def answer_limit(prompt: Prompt, sampling: SamplingParams, max_positions: int) -> int:
    """Return how many tokens an answer may have. Raises InvalidRequestError (PROMPT_TOO_LONG) if none fits."""
    left = max_positions - len(prompt.embeds)
    if left < 1:
        raise InvalidRequestError(
            f"a prompt must have at most {max_positions - 1} rows to leave room for an answer, got "
            f"{len(prompt.embeds)}; ask about fewer pictures, or shorten the conversation",
            reason="PROMPT_TOO_LONG",
        )
    return min(sampling.max_tokens, left)


#: is called with the reason when an engine can no longer answer, and with None when it can again
HealthCallback = Callable[[UnavailableError | None], None]


class Engine(ABC):
    """Runs one decoder for all sessions. All methods are called in the event loop."""

    name: str
    """As GetServerInfo returns it."""
    max_positions: int
    """How many tokens prompt and answer may have together."""
    read_ahead_rows: int = 0
    """The fewest new rows of a prompt that are worth reading before the rest is there; 0: none, as the engine does not
    keep what it read of a client's earlier prompts."""
    recovers: bool
    """Whether it may answer again after it was lost; if not, the server ends."""

    def submit(self, prompt: Prompt, sampling: SamplingParams) -> Generation:
        """Queue a prompt for one answer. Raises what `submit_samples` raises."""
        (generation,) = self.submit_samples(prompt, sampling, 1)
        return generation

    @abstractmethod
    def submit_samples(self, prompt: Prompt, sampling: SamplingParams, samples: int) -> Sequence[Generation]:
        """Queue a prompt for several answers; each can be cancelled alone, and sample i has the seed + i.

        Raises LimitError (ENGINE_BUSY) if the queue is full, UnavailableError while stopping (STOPPING) and when the
        engine was lost (ENGINE_LOST). Answers under way then fail with the same error.
        """

    @abstractmethod
    def load(self) -> EngineLoad:
        """Return how busy it is."""

    @abstractmethod
    def watch(self, on_health: HealthCallback) -> None:
        """Report in the event loop, within a second, that the engine was lost or can answer again."""

    @abstractmethod
    async def stop(self) -> None:
        """End all answers and free the engine's resources."""
