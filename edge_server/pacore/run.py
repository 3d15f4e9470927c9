"""One round: the samples of one prompt, read until all have ended or the round must be over.

    Prompt ─ submit_samples ─→ n × Generation ─ read at the same time ─→ Sample, as each ends
                 ↑_____ the others, one by one, where the engine has fewer places than the round has samples

Promises that all samples which the engine has places for are one request, and that none runs on when the round ends:
by its deadline, by its token budget, by an error or by being cancelled, nor keeps a place of the engine. Leaves what
samples mean to `messages`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace

from edge_server.admission import Admission
from edge_server.engine.base import Engine, Finish, Generation, Prompt
from edge_server.engine.sampling import SamplingParams
from edge_server.pacore.messages import Sample
from tofc.errors import CallError, LimitError, UnavailableError

#: makes a sample of its index, token ids, why it ended (None: stopped or failed), and whether it failed
ReadSample = Callable[[int, Sequence[int], Finish | None, bool], Sample]


class SampleRound:
    """The samples of one prompt. `client` holds a place of the engine; while it runs, the round takes free ones too."""

    def __init__(
        self,
        engine: Engine,
        prompt: Prompt,
        sampling: SamplingParams,
        width: int,
        *,
        admission: Admission,
        client: str,
        read: ReadSample,
        pool: Executor,
        token_budget: int | None,
    ) -> None:
        """Sample i has the seed of `sampling` + i. `token_budget`: most new tokens of the round; None: no limit.

        `pool` reads the samples, because the text of many tokens takes long.
        """
        self.generations: list[Generation] = []  # of the first request
        self._ended: dict[int, Sample] = {}  # and, after `run`, those that were stopped
        self._engine = engine
        self._prompt = prompt
        self._sampling = sampling
        self._width = width
        self._admission = admission
        self._client = client
        self._taken: list[Callable[[], None]] = []  # releases of the places beside the caller's
        self._read = read
        self._pool = pool
        self._budget = token_budget
        self._unsent = deque(range(width))
        self._ids: dict[int, list[int]] = {}  # of samples that were begun
        self._outcomes: dict[int, tuple[Finish | None, bool]] = {}  # of samples that were not stopped, as for `read`
        self._reading = 0  # samples
        self._events: asyncio.Queue[Sample | Exception | None] = asyncio.Queue()  # None: the budget is used up

    async def run(self, until: float | None, on_ended: Callable[[int], None]) -> list[Sample]:
        """Return the samples that were begun, in order; call `on_ended` when one has ended, with how many have.

        `until`: when the round must be over, in the loop's time. Raises what the engine raises for all samples.
        """
        tasks: list[asyncio.Task[None]] = []
        try:
            if self._budget is None or self._budget > 0:
                self._taken += self._admission.more(self._client, self._width - 1)
                tasks += [asyncio.create_task(self._work(*one)) for one in self._submit()]
            while tasks and len(self._ended) < self._width:
                try:
                    async with asyncio.timeout_at(until):
                        event = await self._events.get()
                except TimeoutError:
                    break
                if event is None:
                    break
                if isinstance(event, Exception):
                    raise event
                self._ended[event.index] = event
                on_ended(len(self._ended))
        finally:
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                self._keep(0)
        if rest := sorted(self._ids.keys() - self._ended.keys()):
            loop = asyncio.get_running_loop()
            self._ended |= await loop.run_in_executor(self._pool, self._read_all, rest)
        return self.samples

    @property
    def samples(self) -> list[Sample]:
        """The samples that were begun, in order; if `run` was interrupted, stopped ones have no text."""
        return [self._ended.get(i) or Sample(index=i, tokens=len(ids)) for i, ids in sorted(self._ids.items())]

    def _read_one(self, index: int) -> Sample:
        return self._read(index, self._ids[index], *self._outcomes.get(index, (None, False)))

    def _read_all(self, indexes: Sequence[int]) -> dict[int, Sample]:
        return {index: self._read_one(index) for index in indexes}

    def _keep(self, readers: int) -> None:
        """Release the places that so many samples do not need; the caller's stays."""
        while len(self._taken) >= max(readers, 1):
            self._taken.pop()()

    def _submit(self) -> list[tuple[Generation, int]]:
        """Begin as many samples as there are places, in one request; fewer if the engine has fewer places."""
        count = 1 + len(self._taken)
        while True:
            try:
                self.generations = list(self._engine.submit_samples(self._prompt, self._sampling, count))
                break
            except LimitError:
                if count == 1:
                    raise
                count = (count + 1) // 2
        self._keep(count)
        self._reading = count
        begun = [self._unsent.popleft() for _ in range(count)]
        self._ids |= {index: [] for index in begun}
        return list(zip(self.generations, begun, strict=True))

    async def _work(self, generation: Generation, index: int) -> None:
        """Read a sample; then, in its place, those that were not begun yet, unless a question waits for the place."""
        try:
            while True:
                sample = await self._collect(generation, index)
                if not self._unsent or (self._reading > 1 and self._admission.waiting):
                    break
                if (following := self._begin_another()) is None:
                    break
                self._events.put_nowait(sample)
                generation, index = following
            self._events.put_nowait(sample)
        except Exception as error:
            self._events.put_nowait(error)
        finally:
            self._reading -= 1
            self._keep(self._reading)

    def _begin_another(self) -> tuple[Generation, int] | None:
        """Begin the next sample; None if the engine has no place now and other samples run, which will begin it."""
        index = self._unsent.popleft()
        params = replace(self._sampling, seed=(self._sampling.seed + index) % 2**64)
        try:
            (generation,) = self._engine.submit_samples(self._prompt, params, 1)
        except LimitError:
            if self._reading == 1:
                raise
            self._unsent.appendleft(index)
            return None
        self._ids[index] = []
        return generation, index

    async def _collect(self, generation: Generation, index: int) -> Sample:
        ids = self._ids[index]
        failed = False
        try:
            async for token in generation:
                ids.append(token)
                if self._budget is not None:
                    self._budget -= 1
                    if self._budget == 0:
                        self._events.put_nowait(None)
        except UnavailableError:  # of the whole engine: no other sample will end either
            raise
        except CallError:  # one sample that fails, for lack of memory for instance, is one reference less
            failed = True
        finally:
            await generation.aclose()
        self._outcomes[index] = (generation.finish, failed)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._read_one, index)
