"""Hostile sessions: what must hold of any sequence of requests, in a time that never waits.

    steps ─ two scripted clients ─ TofcService with the fake backend ─ responses, checked

Promises that a case does the same each time: one thread, a clock that jumps to the next timer when nothing
is left to do, and no network. Leaves gRPC itself out, and making steps to `requests`.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from random import Random
from typing import Any

import grpc

from benchmarks.fuzz import Finding
from benchmarks.fuzz.requests import PICTURES, Kind, Step, changed, read, seeds, write
from edge_server.admission import Admission
from edge_server.answer import Workshop
from edge_server.fake import fake_backend
from edge_server.handshake import Identity
from edge_server.pictures import OVERHEAD
from edge_server.receipts import UNTOLD
from edge_server.service import TofcService
from edge_server.settings import ServerSettings, SessionLimits
from edge_server.thinking import Marks
from shared.rpc.tofc.v1 import tofc_pb2

TIGHT = SessionLimits(
    packet_bytes=8, views_per_picture=5, pictures_per_question=2, questions_in_flight=2, question_bytes=20,
    new_tokens=16, views_in_flight=2, pictures_under_way=2, numbers=6,
)  # fmt: skip
#: generous limits; limits so tight that each is met; and a cache that holds two pictures
SETTINGS = (
    {"limits": SessionLimits(new_tokens=64)},
    {"limits": TIGHT, "sessions": 1, "hello_timeout": 1.0},
    {"limits": TIGHT, "cache_bytes": 2 * OVERHEAD + 40},
)
PATIENCE = 1200.0  # seconds of the jumping clock in which everything must have ended by itself
TURNS = 200_000  # of the event loop; more is a loop without end
OURS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}


class JumpingLoop(asyncio.SelectorEventLoop):
    """Waits for nothing: when only timers are left, it is that late."""

    def __init__(self) -> None:
        super().__init__(_Impatient(self))
        self.now = 0.0
        self.turns = 0

    def time(self) -> float:
        return self.now


class _Impatient(selectors.SelectSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        self._loop.turns += 1
        if timeout is None:
            raise Finding("everybody waits for somebody else")
        self._loop.now += max(timeout, 0.0)
        if self._loop.now > PATIENCE or self._loop.turns > TURNS:
            raise Finding(f"not over after {self._loop.now:.0f} s and {self._loop.turns} turns")
        return []


class _Here(Executor):
    """Work is done where it is given in: threads would make cases differ from run to run."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class _Aborted(Exception):
    """As gRPC's own, which ends a handler."""


class Client:
    """One session's other end: says its steps, reads unless told not to, and keeps what it was told."""

    def __init__(self, steps: list[Step]) -> None:
        self.steps = steps
        self.responses: list[tofc_pb2.SessionResponse] = []
        self.status: grpc.StatusCode | None = None  # None: gone before the end
        self.handler: asyncio.Task[None] | None = None
        self._reading = asyncio.Event()
        self._reading.set()

    def peer(self) -> str:
        return "fuzz"

    async def requests(self) -> AsyncIterator[tofc_pb2.SessionRequest]:
        for step in self.steps:
            for _ in range(step.pause):
                await asyncio.sleep(0)
            if step.kind is Kind.REQUEST:
                yield tofc_pb2.SessionRequest.FromString(step.request)
            elif step.kind is Kind.WAIT:
                await asyncio.sleep(step.pause)
            elif step.kind is Kind.READ:
                self._reading.set()
            elif step.kind is Kind.READ_NOT:
                self._reading.clear()
            elif step.kind is Kind.LEAVE and self.handler is not None:
                self.handler.cancel()
                await asyncio.Event().wait()

    async def write(self, response: tofc_pb2.SessionResponse) -> None:
        await self._reading.wait()
        self.responses.append(tofc_pb2.SessionResponse.FromString(response.SerializeToString()))

    async def abort(self, code: grpc.StatusCode, details: str, metadata: Any) -> None:
        self.status = code
        raise _Aborted

    async def run(self, service: TofcService) -> None:
        self.handler = asyncio.ensure_future(service.Session(self.requests(), self))  # type: ignore[arg-type]
        try:
            await self.handler
            self.status = grpc.StatusCode.OK
        except (_Aborted, asyncio.CancelledError):
            pass

    def check(self) -> None:
        """What was told keeps the protocol's rules. Raises `Finding`."""
        kinds = [response.WhichOneof("response") for response in self.responses]
        errors = [response.error for response in self.responses if response.HasField("error")]
        fatal = [error for error in errors if error.request == 0]
        done = Counter(response.done.request for response in self.responses if response.HasField("done"))
        rules = {
            "every response says something": None not in kinds,
            "errors are the client's": not OURS & {self.status, *(grpc_status(error.status) for error in errors)},
            "errors have a reason and a sentence": all(error.reason and error.message for error in errors),
            "the first is Welcome or Error": not kinds or kinds[0] in ("welcome", "error"),
            "one Welcome": kinds.count("welcome") <= 1,
            "one Done a question": all(count == 1 for count in done.values()),
            "nothing follows a session's Error": not fatal or (fatal == errors[-1:] and kinds[-1] == "error"),
        }
        if self.status not in (None, grpc.StatusCode.OK) and fatal:
            rules["the call ends as its Error says"] = grpc_status(fatal[0].status) is self.status
        if self.status is grpc.StatusCode.OK:
            rules |= self._everything_answered({*done, *(error.request for error in errors)})
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise Finding(f"{broken}: {[str(response) for response in self.responses[-6:]]}, {self.status}")

    def _everything_answered(self, answered: set[int]) -> dict[str, bool]:
        said = [tofc_pb2.SessionRequest.FromString(s.request) for s in self.steps if s.kind is Kind.REQUEST]
        announced = Counter(picture.ref for request in said for picture in request.pictures)
        waiting = Counter(picture.ref for request in said for picture in request.pictures if picture.reply)
        stated = Counter(
            response.picture_state.ref for response in self.responses if response.HasField("picture_state")
        )
        views = Counter((view.ref, view.index) for request in said for view in request.views)
        acks = [response.view_ack for response in self.responses if response.HasField("view_ack")]
        taken = Counter((ack.ref, index) for ack in acks for index in ack.indexes)
        asked = {ask.request for request in said for ask in request.asks}
        thinking = {ask.request for request in said for ask in request.asks if ask.thinking}
        thought = {response.token.request for response in self.responses if response.token.thinking}
        return {
            "who waits for PictureState gets it": waiting <= stated,
            "PictureState answers a Picture": stated <= announced,
            "views that came are acknowledged": taken <= views,
            "few views stay unacknowledged": (views - taken).total() < UNTOLD,
            "each question has an end": asked <= answered,
            "thinking goes to who wants it": thought <= thinking,
        }


def grpc_status(number: int) -> grpc.StatusCode | None:
    return next((status for status in grpc.StatusCode if status.value[0] == number), None)


def converse(settings: int, clients: list[list[Step]]) -> list[Client]:
    """Plays sessions against one server until all have ended by themselves, and checks all that was said.

    Raises `Finding` when a rule is broken, something waits for ever, or anything is left behind.
    """
    loop = JumpingLoop()
    problems: list[str] = []
    loop.set_exception_handler(lambda _, context: problems.append(str(context)))
    try:
        played = loop.run_until_complete(_converse(SETTINGS[settings % len(SETTINGS)], clients))
        left = asyncio.all_tasks(loop)
    finally:
        _end(loop)
    for client in played:
        client.check()
    if left or problems:
        raise Finding(f"left behind: {left}, {problems}")
    return played


def _end(loop: JumpingLoop) -> None:
    """Closes the loop; what a finding left in it is cancelled, so that nothing of it is told later."""
    loop.now = loop.turns = 0
    if left := asyncio.all_tasks(loop):
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


async def _converse(settings: dict[str, Any], scripts: list[list[Step]]) -> list[Client]:
    backend = fake_backend(marks=Marks(begin=ord(" "), end=ord("?")))  # the model repeats what it is asked
    service = TofcService(ServerSettings(model=Path("unused"), **settings))
    service.open(
        Identity(version="1.0", model_id=backend.model_id, codec_id=backend.codec_id),
        Workshop(
            admission=Admission(40),
            assembler=backend.assembler,
            engine=backend.engine,
            decode=backend.decode,
            marks=backend.marks,
            pool=_Here(),
            picture_timeout=60.0,
        ),
        service.settings.limits.for_model(backend.most_views),
    )
    clients = [Client(steps) for steps in scripts]
    await asyncio.gather(*(client.run(service) for client in clients))
    for _ in range(3):  # what was cancelled last comes to its end
        await asyncio.sleep(0)
    cache = service.pictures
    held = [picture for one in PICTURES if (picture := cache.get(one)) is not None]
    rules = {
        "the cache keeps its bound": cache.size <= cache.capacity,
        "the cache knows its size": len(held) < len(cache) or cache.size == sum(one.size for one in held),
        "what is held is of use": all(one.complete or one.held or one.left for one in held),
        "what is held is not in use": all(one.evictable and not (one.uploaders or one.arriving) for one in held),
        "no session goes on": not any(service._places),
        "the engine is idle": backend.engine.idle.is_set(),  # type: ignore[attr-defined]
    }
    if broken := [rule for rule, holds in rules.items() if not holds]:
        raise Finding(str(broken))
    return clients


class Streams:
    """The fuzzer's target: `seeds` to begin with, `mutate` to go on, `run` for one case."""

    name = "stream"
    longest = 4096  # bytes of a case

    def __init__(self) -> None:
        logging.disable()

    def seeds(self) -> Iterator[bytes]:
        """Sessions as a device has them, under every setting."""
        for settings in range(len(SETTINGS)):
            for steps in seeds():
                yield bytes([settings]) + write(steps)

    def run(self, data: bytes) -> str:
        """One case, for two clients: how their sessions ended."""
        steps = read(data[1:])
        mine = [[step for step in steps if step.client == client] for client in (0, 1)]
        played = converse(data[0] if data else 0, mine)
        return " ".join(sorted(client.status.name if client.status else "GONE" for client in played))

    def mutate(self, data: bytes, rng: Random, blind: Callable[[bytes], bytes]) -> bytes:
        """Another case: steps moved, doubled, left out, their requests changed field by field or blindly."""
        settings = data[:1] if rng.random() < 0.95 else rng.randbytes(1)
        return (settings or b"\0") + write(changed(read(data[1:]), rng, blind))
