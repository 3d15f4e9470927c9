"""The engines that a server may ask: their addresses, which of them answer, and which one a question goes to.

    DOWN ─ /health and the identity probe answer ─→ UP ─ /health is refused, or fails twice ─→ DOWN
                                                     └─ an answer breaks off ─→ CHECKING ─ both answer, or not ─→ …

Promises that no engine is asked before it has answered the probe, again after every loss; that an engine whose process
ends is noticed within half a second, while a busy one may fail to answer once; and that questions about one picture
stay at one engine while that is not busier than the others by a quarter (consistent hashing with bounded loads, arXiv
1608.01350). Leaves answers to `vllm_remote`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum

from edge_server.engine.engine_check import Check
from edge_server.engine.faults import BrokenOffError, UnreachableError
from tofc.errors import UsageError

log = logging.getLogger(__name__)

POLL_S = 0.4  # between two looks at an engine's /health
WRONG_S = 5.0  # until an engine that runs another model is asked again
PATIENCE_S = 10.0  # with an engine that was UP and is well, but does not answer the probe; questions wait for it
OVERLOAD = 1.25  # times the mean of requests, above which the next engine is taken


class State(Enum):
    """What is known about an engine."""

    CHECKING = "checking"  # an answer of it broke off; questions wait until it has answered the probe again
    UP = "up"
    DOWN = "down"


@dataclass(eq=False, kw_only=True)
class Endpoint:
    """One engine."""

    url: str
    state: State = State.DOWN
    model: str = ""  # as its requests must name it
    max_positions: int = 0
    problem: str = ""  # why it is not UP
    failed: bool = False  # whether the last look at its /health failed
    checked_since_s: float = 0.0  # when CHECKING began, by the event loop's clock
    look: asyncio.Event = field(default_factory=asyncio.Event)  # set: look at it now
    requests: int = 0  # under way
    streams: set[asyncio.Timeout] = field(default_factory=set)  # of these; they end at once when it is lost


class Endpoints:
    """Several engines. `on_change` is called in the event loop when the last is lost, or one is back."""

    def __init__(self, engines: Sequence[Endpoint], check: Check, on_change: Callable[[], None] = lambda: None) -> None:
        self.all = engines
        self.max_positions = 0  # what an engine must have, once that is known
        self._check = check
        self._on_change = on_change
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to watch the engines; harmless when repeated."""
        self._tasks = self._tasks or [asyncio.create_task(self._watch(one), name="engine watch") for one in self.all]

    async def stop(self) -> None:
        """Stop watching."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def first_look(self) -> None:
        """Look at all engines once. Raises UsageError if one is not as it must be, or runs another model."""
        await asyncio.gather(*(self._look_at(one) for one in self.all))

    @property
    def alive(self) -> bool:
        """Whether an engine answers, or may answer in a moment."""
        return any(one.state is not State.DOWN for one in self.all)

    def report(self, endpoint: Endpoint, problem: str) -> None:
        """Take note that an engine broke off or refused to talk: it is checked before it is asked again."""
        if endpoint.state is State.UP:
            endpoint.checked_since_s = asyncio.get_running_loop().time()
            self._set(endpoint, State.CHECKING, problem)
        endpoint.look.set()

    async def choose(self, key: str, avoid: set[str]) -> Endpoint | None:
        """Return the engine for a question about `key`, if possible none of `avoid`; None if all are lost.

        Waits for engines that are being checked. The caller counts the request in `requests`, at once: the choice for
        the next question depends on it.
        """
        while self.alive:
            if up := [one for one in self.all if one.state is State.UP]:
                up = [one for one in up if one.url not in avoid] or up
                return _choose(up, key)
            await self._changed.wait()
        return None

    async def _watch(self, endpoint: Endpoint) -> None:
        while True:
            endpoint.look.clear()
            pause_s = POLL_S
            try:
                await self._look_at(endpoint)
            except UsageError as error:
                self._set(endpoint, State.DOWN, str(error))
                pause_s = WRONG_S
            except Exception:  # a defect must not end the watch
                log.exception("looking at the engine %s failed", endpoint.url)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await endpoint.look.wait()

    async def _look_at(self, endpoint: Endpoint) -> None:
        """Look at its health; if it is not UP, check it. Raises UsageError."""
        try:
            await self._check.health(endpoint.url)
        except BrokenOffError as error:
            if endpoint.failed or endpoint.state is State.DOWN or isinstance(error, UnreachableError):
                self._set(endpoint, State.DOWN, str(error))
            endpoint.failed = True
            return
        endpoint.failed = False
        if endpoint.state is State.UP:
            return
        try:
            model, positions = await self._ask_identity(endpoint)
        except BrokenOffError as error:
            if endpoint.state is State.DOWN:
                self._set(endpoint, State.DOWN, str(error))
            elif _patience_left_s(endpoint) <= 0:
                self._set(endpoint, State.DOWN, f"no answer to the identity probe for {PATIENCE_S:.0f} s ({error})")
            return
        if positions < self.max_positions:
            raise UsageError(
                f"the engine {endpoint.url} takes {positions} tokens, the others {self.max_positions}; start all with "
                "the same --max-model-len"
            )
        endpoint.model, endpoint.max_positions = model, positions
        self._set(endpoint, State.UP, "")

    async def _ask_identity(self, endpoint: Endpoint) -> tuple[str, int]:
        """Return its model and positions. Raises BrokenOffError, UsageError."""
        if endpoint.state is State.DOWN:  # perhaps it has just started, which takes longer
            return await self._check.identity(endpoint.url)
        known = (endpoint.model, endpoint.max_positions)
        return await self._check.identity(endpoint.url, known, timeout_s=max(_patience_left_s(endpoint), 0.0))

    def _set(self, endpoint: Endpoint, state: State, problem: str) -> None:
        before, told = self.alive, (endpoint.state, endpoint.problem)
        endpoint.state, endpoint.problem = state, problem
        if state is State.UP and told[0] is not State.UP:
            log.info("the engine %s answers as %s", endpoint.url, endpoint.model)
        elif state is State.DOWN and told != (state, problem):
            log.warning("the engine %s does not answer: %s", endpoint.url, problem)
        if state is State.DOWN:
            for stream in endpoint.streams:
                stream.reschedule(asyncio.get_running_loop().time())
            endpoint.streams.clear()
        if told[0] is not state:
            self._changed.set()
            self._changed = asyncio.Event()
        if before != self.alive:
            self._on_change()


def _patience_left_s(endpoint: Endpoint) -> float:
    return endpoint.checked_since_s + PATIENCE_S - asyncio.get_running_loop().time()


def _choose(up: Sequence[Endpoint], key: str) -> Endpoint:
    """Return the first engine in the key's own order (rendezvous hashing) that is not overloaded."""
    most = math.ceil(OVERLOAD * (sum(one.requests for one in up) + 1) / len(up))
    ranked = sorted(up, key=lambda one: hashlib.sha256(f"{key}\0{one.url}".encode()).digest())
    return next(one for one in ranked if one.requests < most)
