"""The engines that the suite runs: each entry says how to make one, and how to see inside it.

An engine is added by a function like those below and its name in `ENGINES`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from edge_server.engine.base import Engine, Prompt
from edge_server.engine.completion_request import CompletionFormat
from edge_server.engine.fake import FakeEngine
from edge_server.engine.fake_vllm import FakeVllm
from edge_server.engine.probe import is_exact
from edge_server.engine.qwen3 import load_qwen3
from edge_server.engine.transformers import TransformersEngine
from edge_server.engine.vllm_remote import VllmRemoteEngine, find_engines
from tests.engine.nano import LONG, Nano
from tests.engine.remote import knows_the_probe, remote_model
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


def _embedded(packed: bool = False, static: bool = False) -> Callable[[Nano], EngineUnderTest]:
    def entry(nano: Nano) -> EngineUnderTest:
        async def make(*, stops: bool = True, parallel: int = 16, queue: int = 64) -> Engine:
            model = load_qwen3(Checkpoint.open(NANO, "server"))
            return TransformersEngine(
                model, nano.stop_tokens if stops else [], parallel=parallel, queue=queue, packed=packed, static=static
            )

        async def kill(engine: Engine) -> None:
            def defect() -> Any:
                raise AssertionError("a defect in the worker")

            engine._plan = defect  # type: ignore[attr-defined]

        return EngineUnderTest(
            make=make,
            kill=kill,
            steps=lambda engine: engine.steps,  # type: ignore[attr-defined]
            exact_company=not packed or _packs_exactly(),
        )

    return entry


@cache
def _packs_exactly() -> bool:
    """Return whether this machine's packed forwards are exact; a server packs only where they are."""
    return is_exact(load_qwen3(Checkpoint.open(NANO, "server")))


def _fake(nano: Nano) -> EngineUnderTest:
    def answer(prompt: Prompt, stops: bool) -> Sequence[int]:
        answers = nano.answers if stops else nano.long_answers
        for known, found in zip(nano.prompts, answers, strict=True):
            if known.embeds is prompt.embeds:
                return found if stops else found * (8192 // LONG)
        return [1] * 8192

    async def make(*, stops: bool = True, parallel: int = 16, queue: int = 64) -> Engine:
        _ = nano.answers if stops else nano.long_answers  # computed now, not while an answer is awaited
        return FakeEngine(lambda prompt: answer(prompt, stops), queue=parallel + queue, max_positions=8192)

    async def kill(engine: Engine) -> None:
        assert isinstance(engine, FakeEngine)
        engine.die()
        await asyncio.sleep(0)

    return EngineUnderTest(make=make, kill=kill, steps=lambda engine: engine.steps, samples=False)  # type: ignore[attr-defined]


class _BehindHttp(VllmRemoteEngine):
    """Asks a fake vLLM, which is stopped with it."""

    server: FakeVllm
    inner: Engine

    async def stop(self) -> None:
        await super().stop()
        await self.server.kill()
        await self.inner.stop()


def _vllm_remote(nano: Nano) -> EngineUnderTest:
    async def make(*, stops: bool = True, parallel: int = 16, queue: int = 64) -> Engine:
        stop_tokens = sorted(nano.stop_tokens) if stops else []
        inner = TransformersEngine(
            load_qwen3(Checkpoint.open(NANO, "server")), stop_tokens, parallel=parallel, queue=queue
        )
        server = FakeVllm(inner, knows_the_probe, stop_token=min(nano.stop_tokens))
        await server.start()
        model = remote_model(form=CompletionFormat(dtype="float32", stop_tokens=stop_tokens))
        found = await find_engines([server.url], None, model)
        engine = _BehindHttp(found, None, model, parallel=parallel, queue=queue)
        engine.server, engine.inner = server, inner
        return engine

    async def kill(engine: Engine) -> None:
        assert isinstance(engine, _BehindHttp)
        await engine.server.kill()

    return EngineUnderTest(make=make, kill=kill)


#: name → what the suite needs to know
ENGINES: dict[str, Callable[[Nano], EngineUnderTest]] = {
    "fake": _fake,
    "embedded, packed": _embedded(packed=True),
    "embedded, in turns": _embedded(),
    "embedded, in fixed shapes": _embedded(static=True),
    "vllm-remote": _vllm_remote,
}
