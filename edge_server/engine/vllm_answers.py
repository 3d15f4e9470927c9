"""The answers that a server has asked vLLM for: a task for each request, which feeds its samples.

    submit_samples ─→ Samples ─ a task: `_answer` ─→ vLLM, in this process or elsewhere
                                  └ cancelled when nobody waits for any of its samples

Promises that every sample ends: with its task's error, if it has not ended before. Leaves asking to the two engines,
and batching and caches to vLLM.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Collection, Sequence

from edge_server.engine.base import Engine, EngineLoad, Generation, HealthCallback, Prompt
from edge_server.engine.refusals import busy, stopping
from edge_server.engine.samples import Sample, by_request, count, make_samples
from edge_server.engine.sampling import SamplingParams
from tofc.errors import CallError, InternalError

log = logging.getLogger(__name__)


class VllmAnswers(Engine):
    """What is the same for vLLM in this process and elsewhere; `parallel` answers run and `queue` more wait."""

    def __init__(self, stop_tokens: Collection[int], *, parallel: int, queue: int) -> None:
        self._stop_tokens = frozenset(stop_tokens)
        self._parallel, self._allowed = parallel, parallel + queue
        self._running: dict[asyncio.Task[None], list[Sample]] = {}
        self._stopping = False
        self._on_health: list[HealthCallback] = []

    @abstractmethod
    def _require_alive(self) -> None:
        """Raise UnavailableError if nothing can be asked now."""

    @abstractmethod
    async def _answer(self, prompt: Prompt, samples: list[Sample]) -> None:
        """Ask vLLM until the samples have ended. Raises CallError."""

    def submit_samples(self, prompt: Prompt, sampling: SamplingParams, samples: int) -> list[Generation]:
        self._require_alive()
        taken = sum(count(self._open()))
        if taken + samples > self._allowed:
            raise busy(taken)
        asked, generations = make_samples(
            prompt, sampling, samples, max_positions=self.max_positions, on_close=lambda: self._closed(tasks)
        )
        tasks = []
        for part in by_request(asked):
            tasks.append(task := asyncio.get_running_loop().create_task(self._answer(prompt, part)))
            self._running[task] = part
            task.add_done_callback(self._answered)
        return generations

    def load(self) -> EngineLoad:
        """Return this server's own answers; other servers may ask the same engines."""
        running, waiting = count(self._open())
        return EngineLoad(
            running=running,
            running_allowed=self._parallel,
            waiting=waiting,
            waiting_allowed=self._allowed - self._parallel,
        )

    async def _stop_answers(self) -> None:
        """Take no more, and end all answers, which fail with UnavailableError."""
        self._stopping = True
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _open(self) -> list[Sample]:
        return [one for samples in self._running.values() for one in samples if one.open]

    def _closed(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Cancel requests of whose samples nobody waits for any; vLLM cannot end one of them alone."""
        for task in tasks:
            if not any(one.open for one in self._running.get(task, ())):
                task.cancel()

    def _answered(self, task: asyncio.Task[None]) -> None:
        """Fail the samples that have not ended: here, because a task that is cancelled early never runs."""
        error = stopping() if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, CallError):
            log.error("an answer failed", exc_info=error)
        for one in self._running.pop(task):
            if one.open:
                one.fail(error if isinstance(error, CallError) else InternalError())
