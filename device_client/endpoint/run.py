"""The answers to one request, while they are generated: one question to the session for each choice.

    ChatRequest + pictures ─┬─ choice 0 ─┐
                            └─ choice 1 ─┴─→ Event, in order of arrival: text, thinking, end

Promises that closing it gives every question up, so that the server stops, and that the first error ends all choices.
Leaves the form of the response to `completion` and `events`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Self

from device_client.endpoint.request import ChatRequest
from device_client.picture import Picture
from device_client.report import Report
from device_client.session import Session
from device_client.transcript import Delta
from tofc.v1 import tofc_pb2 as pb

ALL = 2**32 - 1  # a thinking budget that the session lowers to the server's limit


@dataclass(frozen=True, kw_only=True)
class Event:
    """A piece of a choice, or its end: then `report` is set."""

    choice: int
    delta: Delta | None = None
    report: Report | None = None


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a request gets that does not say otherwise."""

    timeout_s: float | None
    """Of an answer; a request may only lower it."""
    thinking_budget: int | None
    """Tokens; None: as many as the server allows."""
    include_thinking: bool
    """Whether thinking is sent to clients; it costs bytes on the link."""


class ChatRun:
    """Use it with `async with`; iterate over `events` once."""

    def __init__(
        self,
        session: Session,
        request: ChatRequest,
        pictures: Sequence[Picture],
        welcome: pb.Welcome,
        defaults: Defaults,
        *,
        arrived_s: float,
    ) -> None:
        """`arrived_s`: when the request came, of `time.perf_counter`."""
        self.first_token_ms: float | None = None  # from the arrival of the request to the first text of a choice
        self.reports: dict[int, Report] = {}
        self._session = session
        self._request = request
        self._pictures = pictures
        self._welcome = welcome
        self._defaults = defaults
        self._arrived_s = arrived_s
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()  # an answer has a bounded number of them
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._answer(choice)) for choice in range(self._request.choices)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Give up what has not ended. Calling twice is harmless."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def events(self) -> AsyncIterator[Event]:
        """Yield what arrives until every choice has ended. Raises the first error of one."""
        while len(self.reports) < self._request.choices:
            event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            if event.report is not None:
                self.reports[event.choice] = event.report
            if self.first_token_ms is None:
                self.first_token_ms = round((time.perf_counter() - self._arrived_s) * 1e3, 2)
            yield event

    async def _answer(self, choice: int) -> None:
        try:
            asked = self._request
            sampling = asked.sampling
            if most := self._welcome.limits.new_tokens:  # clients ask for more than a server allows, as an upper bound
                sampling = replace(sampling, max_tokens=min(sampling.max_tokens, most))
            if sampling.seed is not None:
                sampling = replace(sampling, seed=(sampling.seed + choice) % 2**64)
            answer = self._session.converse(
                self._pictures,
                asked.turns,
                sampling=sampling,
                reasoning=asked.reasoning,
                thinking=self._welcome.thinking and asked.include_thinking and self._defaults.include_thinking,
                stop=asked.stop,
                thinking_budget=self._budget(),
                timeout_s=self._timeout_s(),
            )
            async with aclosing(aiter(answer)) as deltas:
                async for delta in deltas:
                    self._events.put_nowait(Event(choice=choice, delta=delta))
            assert answer.report is not None, "it was iterated to its end"
            self._events.put_nowait(Event(choice=choice, report=answer.report))
        except Exception as error:
            self._events.put_nowait(error)

    def _budget(self) -> int:
        for budget in (self._request.thinking_budget, self._defaults.thinking_budget):
            if budget is not None:
                return budget
        return ALL

    def _timeout_s(self) -> float | None:
        given = [one for one in (self._request.timeout_s, self._defaults.timeout_s) if one is not None]
        return min(given, default=None)
