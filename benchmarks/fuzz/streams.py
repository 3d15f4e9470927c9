"""Hostile sessions: checks that must hold for any sequence of requests, without waiting.

    steps ─ two scripted clients ─ TofcService with the fake backend ─ responses, checked

Promises that a case does the same each time: it has one thread, no network, and a clock that jumps to the next timer
when nothing else is left to do. Leaves gRPC itself out, and making steps to `requests`.
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
from google.protobuf.message import DecodeError

from benchmarks.fuzz import Finding
from benchmarks.fuzz.requests import PICTURES, Kind, Step, changed, read, seeds, write
from edge_server.admission import Admission
from edge_server.fake import fake_backend
from edge_server.handshake import ServerIdentity
from edge_server.picture_cache import OVERHEAD_BYTES
from edge_server.reasoning import ThinkTokens
from edge_server.runtime import Runtime
from edge_server.service import TofcService
from edge_server.settings import ServerSettings, SessionLimits
from edge_server.view_acks import ACK_VIEWS
from tofc.rpc.implied import ImpliedNumbers
from tofc.v1 import tofc_pb2 as pb

TIGHT = SessionLimits(
    packet_bytes=8, views_per_picture=5, pictures_per_question=2, questions_in_flight=2, question_bytes=20,
    new_tokens=16, views_in_flight=2, pictures_under_way=2, numbers=6, samples=8,
)  # fmt: skip
#: generous limits; limits so tight that each of them is reached; and a cache that holds two pictures
SETTINGS = (
    {"limits": SessionLimits(new_tokens=64)},
    {"limits": TIGHT, "sessions": 1, "hello_timeout_s": 1.0},
    {"limits": TIGHT, "cache_bytes": 2 * OVERHEAD_BYTES + 40},
)
MAX_SECONDS = 1200.0  # of the jumping clock, in which every session must have ended by itself
MAX_TURNS = 200_000  # of the event loop; more means an endless loop
SERVER_FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: when only timers are left, its clock jumps to the next one."""

    def __init__(self) -> None:
        super().__init__(_JumpingSelector(self))
        self.now = 0.0
        self.turns = 0

    def time(self) -> float:
        return self.now


class _JumpingSelector(selectors.SelectSelector):
    """Moves the loop's clock on instead of waiting; raises `Finding` if nothing would ever happen."""

    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        self._loop.turns += 1
        if timeout is None:
            raise Finding("deadlock: no timer is left, and every task waits for another")
        self._loop.now += max(timeout, 0.0)
        if self._loop.now > MAX_SECONDS or self._loop.turns > MAX_TURNS:
            raise Finding(f"not over after {self._loop.now:.0f} s and {self._loop.turns} turns")
        return []


class _InlineExecutor(Executor):
    """An executor that runs work at once: with threads, cases would differ from run to run."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class _Aborted(Exception):
    """Ends a handler, as gRPC's own exception does."""


class Client:
    """The client of one session: performs its steps, reads unless a step stops it, and keeps the responses."""

    def __init__(self, steps: list[Step]) -> None:
        self.steps = steps
        self.responses: list[pb.SessionResponse] = []
        self.status: grpc.StatusCode | None = None  # None: the client left before the end
        self.handler: asyncio.Task[None] | None = None
        self._reading = asyncio.Event()
        self._reading.set()

    def peer(self) -> str:
        return "fuzz"

    async def requests(self) -> AsyncIterator[pb.SessionRequest]:
        for step in self.steps:
            for _ in range(step.pause):
                await asyncio.sleep(0)
            if step.kind is Kind.REQUEST:
                yield pb.SessionRequest.FromString(step.request)
            elif step.kind is Kind.WAIT:
                await asyncio.sleep(step.pause)
            elif step.kind is Kind.READ:
                self._reading.set()
            elif step.kind is Kind.READ_NOT:
                self._reading.clear()
            elif step.kind is Kind.LEAVE and self.handler is not None:
                self.handler.cancel()
                await asyncio.Event().wait()

    async def write(self, response: pb.SessionResponse) -> None:
        await self._reading.wait()
        self.responses.append(pb.SessionResponse.FromString(response.SerializeToString()))

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
        """Check that the responses follow the protocol. Raises `Finding`."""
        kinds = [response.WhichOneof("response") for response in self.responses]
        errors = [response.error for response in self.responses if response.HasField("error")]
        fatal = [error for error in errors if error.request == 0]
        done = Counter(response.done.request for response in self.responses if response.HasField("done"))
        statuses = {self.status, *(grpc_status(error.status) for error in errors)}
        rules = {
            "every response has content": None not in kinds,
            "every error is the client's fault": not SERVER_FAULTS & statuses,
            "errors have a reason and a message": all(error.reason and error.message for error in errors),
            "the first response is Welcome or Error": not kinds or kinds[0] in ("welcome", "error"),
            "at most one Welcome": kinds.count("welcome") <= 1,
            "at most one Done for a question": all(count == 1 for count in done.values()),
            **self._samples_add_up(),
            "nothing follows a session's Error": not fatal or (fatal == errors[-1:] and kinds[-1] == "error"),
        }
        if self.status not in (None, grpc.StatusCode.OK) and fatal:
            rules["the call's status is that of its Error"] = grpc_status(fatal[0].status) is self.status
        if self.status is grpc.StatusCode.OK:
            rules |= self._everything_answered({*done, *(error.request for error in errors)})
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise Finding(f"{broken}: {[str(response) for response in self.responses[-6:]]}, {self.status}")

    def _samples_add_up(self) -> dict[str, bool]:
        """Return the rules of answers from samples; a number may be used again, so no rule is about one question."""
        asks = [ask.reasoning for one in self.steps if one.kind is Kind.REQUEST for ask in asks_of(one.request)]
        kinds = {response.WhichOneof("response") for response in self.responses}
        told = [response.progress for response in self.responses if response.HasField("progress")]
        ended = [response.done for response in self.responses if response.HasField("done")]
        most = max((sum(one.rounds) or one.vote for one in asks), default=0)
        return {
            "progress comes only with samples": not told or any(one.rounds or one.vote for one in asks),
            "progress is within its round": all(
                one.ended <= one.samples <= most and 1 <= one.round <= one.rounds for one in told
            ),
            "samples are sent only if they were asked for": "rollout" not in kinds or any(one.rollouts for one in asks),
            "samples are counted": all(one.usage.samples_used <= one.usage.samples <= most for one in ended),
            "votes are those of usable samples": all(
                not one.votes or sum(vote.count for vote in one.votes) == one.usage.samples_used for one in ended
            ),
        }

    def _everything_answered(self, answered: set[int]) -> dict[str, bool]:
        requests = [pb.SessionRequest.FromString(s.request) for s in self.steps if s.kind is Kind.REQUEST]
        implied = ImpliedNumbers()
        for request in requests:
            implied.restore(request)
        announced = Counter(picture.ref for request in requests for picture in request.pictures)
        waiting = Counter(picture.ref for request in requests for picture in request.pictures if picture.want_state)
        stated = Counter(
            response.picture_state.ref for response in self.responses if response.HasField("picture_state")
        )
        views = Counter(
            (view.ref, index)
            for request in requests
            for view in request.views
            for index in range(view.index, view.index + (view.views or len(view.packets) or 1))
        )
        acks = [response.view_ack for response in self.responses if response.HasField("view_ack")]
        acked = Counter((ack.ref, index) for ack in acks for index in ack.indexes)
        asked = {ask.request for request in requests for ask in request.asks}
        thinking = {ask.request for request in requests for ask in request.asks if ask.thinking}
        thought = {response.token.request for response in self.responses if response.token.thinking}
        return {
            "every PictureState that was asked for comes": waiting <= stated,
            "every PictureState is about an announced picture": stated <= announced,
            "acknowledged views had been sent": acked <= views,
            "few views stay unacknowledged": (views - acked).total() < ACK_VIEWS,
            "every question gets Done or Error": asked <= answered,
            "thinking is sent only if it was asked for": thought <= thinking,
        }


def asks_of(request: bytes) -> list[pb.Ask]:
    """Return the questions of a request; none if it cannot be read."""
    try:
        return list(pb.SessionRequest.FromString(request).asks)
    except DecodeError:
        return []


def grpc_status(number: int) -> grpc.StatusCode | None:
    return next((status for status in grpc.StatusCode if status.value[0] == number), None)


def converse(settings: int, clients: list[list[Step]]) -> list[Client]:
    """Run sessions against one server until all have ended by themselves, and check all responses.

    Raises `Finding` if a rule is broken, something waits forever, or a task or an error is left over.
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
        raise Finding(f"tasks or errors were left over: {left}, {problems}")
    return played


def _end(loop: JumpingLoop) -> None:
    """Close the loop; cancel the tasks that a finding left in it, so that nothing is reported later."""
    loop.now = loop.turns = 0
    if left := asyncio.all_tasks(loop):
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


async def _converse(settings: dict[str, Any], scripts: list[list[Step]]) -> list[Client]:
    # The fake model repeats the question, so a question decides whether there is thinking.
    backend = fake_backend(think_tokens=ThinkTokens(begin=ord(" "), end=ord("?")))
    service, admission = TofcService(ServerSettings(model=Path("unused"), **settings)), Admission(8, 32)
    service.open(
        ServerIdentity(version="1.0", model_id=backend.model_id, codecs=backend.codecs),
        Runtime(
            backend=backend,
            admission=admission,
            pool=_InlineExecutor(),
            picture_timeout_s=60.0,
        ),
        service.settings.limits.for_model(backend.max_views, backend.engine.max_positions),
    )
    clients = [Client(steps) for steps in scripts]
    await asyncio.gather(*(client.run(service) for client in clients))
    for _ in range(3):  # lets tasks that were cancelled last end
        await asyncio.sleep(0)
    cache = service.pictures
    held = [picture for one in PICTURES if (picture := cache.get(one)) is not None]
    held_bytes = sum(one.size_bytes for one in held)
    rules = {
        "the cache is within its bound": cache.size_bytes <= cache.capacity_bytes,
        "the cache's size is the sum of its pictures": len(held) < len(cache) or cache.size_bytes == held_bytes,
        "every cached picture has content": all(one.complete or one.view_indexes or one.kept_file for one in held),
        "cached pictures are not in use": all(one.evictable and not (one.uploaders or one.arriving) for one in held),
        "no session is left": not any(service._slots),
        "no place of the engine is taken": admission.running == admission.waiting == 0,
        "the engine is idle": backend.engine.idle.is_set(),  # type: ignore[attr-defined]
    }
    if broken := [rule for rule, holds in rules.items() if not holds]:
        raise Finding(str(broken))
    return clients


class Streams:
    """A fuzzing target: `seeds` are the first cases, `mutate` makes more, `run` runs one."""

    name = "stream"
    longest = 4096  # bytes of a case

    def __init__(self) -> None:
        logging.disable()

    def seeds(self) -> Iterator[bytes]:
        """Yield sessions as a device has them, with every setting."""
        for settings in range(len(SETTINGS)):
            for steps in seeds():
                yield bytes([settings]) + write(steps)

    def run(self, data: bytes) -> str:
        """Run one case with two clients; return how their sessions ended."""
        steps = read(data[1:])
        mine = [[step for step in steps if step.client == client] for client in (0, 1)]
        played = converse(data[0] if data else 0, mine)
        return " ".join(sorted(client.status.name if client.status else "GONE" for client in played))

    def mutate(self, data: bytes, rng: Random, blind: Callable[[bytes], bytes]) -> bytes:
        """Change a case: move, repeat or drop steps, change requests field by field or blindly."""
        settings = data[:1] if rng.random() < 0.95 else rng.randbytes(1)
        return (settings or b"\0") + write(changed(read(data[1:]), rng, blind))
