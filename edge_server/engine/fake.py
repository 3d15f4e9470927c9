"""An engine without weights: its answer is a function of the prompt, one token a step.

Promises the behaviour of a real engine (bounded queue, cancelling between steps, times), so that everything around it
is tested in milliseconds. Leaves the answer's content to that function.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from edge_server.engine.base import (
    Engine,
    EngineLoad,
    Finish,
    Generation,
    HealthCallback,
    Prompt,
    answer_limit,
    sample_params,
)
from edge_server.engine.refusals import stopping
from edge_server.engine.sampling import SamplingParams
from tofc.errors import LimitError, UnavailableError


class FakeEngine(Engine):
    """Generates the token ids that `answer` maps a prompt to. With a `gate`, every token waits until that event is set.

    With `sample`, it maps a prompt and the parameters of one sample to that sample instead; an exception in place of an
    id fails the answer there. `step_s` is the time of one token. For tests: `steps` counts tokens, `cancelled` counts
    cancelled answers; `busy` is set while an answer is generated and `idle` while none is.
    """

    name = "fake"
    recovers = True

    def __init__(
        self,
        answer: Callable[[Prompt], Sequence[int]],
        *,
        gate: asyncio.Event | None = None,
        queue: int = 32,
        max_positions: int = 65536,
        step_s: float = 0.0,
        read_ahead_rows: int = 0,
        sample: Callable[[Prompt, SamplingParams], Sequence[int | Exception]] | None = None,
    ) -> None:
        self.read_ahead_rows = read_ahead_rows
        self.max_positions = max_positions
        self.steps = 0
        self.cancelled = 0
        self.stopped = False
        self.prompts: list[Prompt] = []
        self.params: list[list[SamplingParams]] = []  # of each prompt's samples
        self.busy = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self._sample = sample or (lambda prompt, _: answer(prompt))
        self._gate = gate
        self._queue = queue
        self._step_s = step_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._generations: set[Generation] = set()
        self._dead: UnavailableError | None = None
        self._on_health: list[HealthCallback] = []

    def submit_samples(self, prompt: Prompt, sampling: SamplingParams, samples: int) -> list[Generation]:
        if self._dead is not None:
            raise self._dead
        most = answer_limit(prompt, sampling, self.max_positions)
        if self.stopped:
            raise stopping()
        if self._active() + samples > self._queue:
            raise LimitError(f"{self._queue} questions are waiting already; ask again later", reason="ENGINE_BUSY")
        self.prompts.append(prompt)
        self.params.append(sample_params(sampling, samples))
        return [self._start(prompt, one, most) for one in self.params[-1]]

    def load(self) -> EngineLoad:
        return EngineLoad(running=self._active(), running_allowed=self._queue, waiting=0, waiting_allowed=0)

    def _active(self) -> int:
        return sum(not one.cancelled for one in self._generations)

    def watch(self, on_health: HealthCallback) -> None:
        self._on_health.append(on_health)

    def die(self) -> None:
        """Fail all answers, and all further ones until `revive`."""
        self._dead = UnavailableError("the engine was lost; ask again in a moment", reason="ENGINE_LOST")
        for generation in list(self._generations):
            generation.fail(self._dead)
        for task in list(self._tasks):
            task.cancel()
        for tell in self._on_health:
            tell(self._dead)

    def revive(self) -> None:
        """Answer again."""
        self._dead = None
        for tell in self._on_health:
            tell(None)

    def _start(self, prompt: Prompt, sampling: SamplingParams, most: int) -> Generation:
        generation = Generation(on_close=lambda: stop())
        task = asyncio.get_running_loop().create_task(self._run(generation, prompt, sampling, most))

        def stop() -> None:
            task.cancel()

        self._tasks.add(task)
        self._generations.add(generation)
        task.add_done_callback(self._ended)
        task.add_done_callback(lambda _: self._generations.discard(generation))
        self.busy.set()
        self.idle.clear()
        return generation

    async def stop(self) -> None:
        self.stopped = True
        for generation in list(self._generations):
            generation.fail(stopping())
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, generation: Generation, prompt: Prompt, sampling: SamplingParams, most: int) -> None:
        generation.begin()
        tokens = self._sample(prompt, sampling)
        generation.prefilled()
        for token in tokens[:most]:
            if self._gate is not None:
                await self._gate.wait()
            if isinstance(token, Exception):
                generation.fail(token)
                return
            self.steps += 1
            generation.put(token)
            await asyncio.sleep(self._step_s)  # lets other answers make a step
        generation.end(Finish.STOP if len(tokens) <= most else Finish.LENGTH)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.cancelled += task.cancelled()
        if not self._tasks:
            self.busy.clear()
            self.idle.set()
