"""The engines that the suite runs: each entry says how to make one, and how to see inside it.

An engine is added by a function like those below and its name in `ENGINES`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edge_server.engine.base import Engine, Prompt
from edge_server.engine.fake import FakeEngine
from edge_server.engine.qwen3 import load_qwen3
from edge_server.engine.transformers import TransformersEngine
from tests.engine.nano import LONG, Nano
from tofc.model.checkpoint import Checkpoint
from tofc.model.shipped import NANO


class Make(Protocol):
    """Makes an engine for nano. `stops` False: no token ends an answer."""

    async def __call__(self, *, stops: bool = True, parallel: int = 16, queue: int = 64) -> Engine: ...


@dataclass(frozen=True, kw_only=True)
class EngineUnderTest:
    """What the suite knows of one kind of engine."""

    make: Make
    kill: Callable[[Engine], Awaitable[None]]  # lose it, as a defect or a lost server would
    steps: Callable[[Engine], int] | None = None  # steps computed so far; None: it cannot be seen
    samples: bool = True  # whether it samples; if not, every answer is the greedy one
    exact_company: bool = True  # whether sampled answers are the same in any company


def _embedded(packed: bool) -> Callable[[Nano], EngineUnderTest]:
    def entry(nano: Nano) -> EngineUnderTest:
        async def make(*, stops: bool = True, parallel: int = 16, queue: int = 64) -> Engine:
            model = load_qwen3(Checkpoint.open(NANO, "server"))
            return TransformersEngine(
                model, nano.stop_tokens if stops else [], parallel=parallel, queue=queue, packed=packed
            )

        async def kill(engine: Engine) -> None:
            def defect() -> Any:
                raise AssertionError("a defect in the worker")

            engine._plan = defect  # type: ignore[attr-defined]

        return EngineUnderTest(make=make, kill=kill, steps=lambda engine: engine.steps)  # type: ignore[attr-defined]

    return entry


def _fake(nano: Nano) -> EngineUnderTest:
    def answer(prompt: Prompt, stops: bool) -> Sequence[int]:
        answers = nano.answers if stops else nano.long_answers
        for known, found in zip(nano.prompts, answers, strict=True):
            if known.embeds is prompt.embeds:
                return found if stops else found * (8192 // LONG)
        return [1] * 8192

    async def make(*, stops: bool = True, parallel: int = 16, queue: int = 64) -> Engine:
        return FakeEngine(lambda prompt: answer(prompt, stops), queue=parallel + queue, max_positions=8192)

    async def kill(engine: Engine) -> None:
        assert isinstance(engine, FakeEngine)
        engine.die()
        await asyncio.sleep(0)

    return EngineUnderTest(make=make, kill=kill, steps=lambda engine: engine.steps, samples=False)  # type: ignore[attr-defined]


#: name → what the suite needs to know
ENGINES: dict[str, Callable[[Nano], EngineUnderTest]] = {
    "fake": _fake,
    "embedded, packed": _embedded(packed=True),
    "embedded, in turns": _embedded(packed=False),
}
