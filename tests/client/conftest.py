"""A small server that records its requests, and a device without a model."""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, MutableSequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image

from device_client import options
from device_client.compute import Compute
from device_client.fake import FakeEncoder
from device_client.link import Target
from device_client.rate import RateChoice
from device_client.retry_policy import RetryPolicy
from device_client.session import Session
from edge_server.view_acks import AckBatcher
from tofc.codec.fake import fake_weights
from tofc.errors import CallError, LimitError, UnavailableError, UnknownReferenceError
from tofc.rpc.channel import bind, make_server
from tofc.rpc.errors import abort, to_message
from tofc.rpc.implied import ImpliedNumbers
from tofc.v1 import tofc_pb2 as pb
from tofc.v1 import tofc_pb2_grpc

AT_ONCE = RetryPolicy(first_s=0.0)
CODEC = fake_weights(Q=2).config


class FakeServer(tofc_pb2_grpc.TofcServiceServicer):
    """Answers "yes to QUESTION" once every view has arrived.

    `requests` holds (session, kind, message) of everything that was received. A test sets the other attributes.
    """

    def __init__(self) -> None:
        self.model_id, self.codec_id = FakeEncoder().model_id, FakeEncoder().codec_id
        self.limits = pb.Limits(
            packet_bytes=1000, views_per_picture=40, pictures_per_question=2, questions_in_flight=2, new_tokens=100
        )
        self.samples_by_default, self.picture_key = False, bytes(16)
        self.requests: list[tuple[int, str, Any]] = []
        self.conversations: dict[tuple[int, int], list[str]] = {}  # texts by session and question
        self.prompts: list[list[str]] = []  # of each question: the earlier turns and its text
        self.messages: list[list[str]] = []  # the kinds of parts that each had
        self.wire: list[bytes] = []  # each message as it arrived, with its implied numbers left out
        self.stored: dict[bytes, set[int]] = {}
        self.files: dict[int, bytes] = {}  # image files by ref, as far as they came
        self.cut_at: int | None = None  # the link is lost with the chunk that reaches this byte of its file, once
        self.refusal: CallError | None = None
        self.loading = 0  # sessions that are refused first, because it loads its model
        self.reply_start = "yes"
        self.tokens: list[dict[str, Any]] = []  # the answer instead; thinking is sent to questions that request it
        self.samples: list[dict[str, Any]] = []  # sent before the answer: {"progress": …} or {"rollout": …}
        self.done: dict[str, Any] = {}  # fields of Done, instead of the defaults
        self.lose: list[int] = []  # for each session in turn: the tokens after which its link is cut
        self.ends: list[CallError] = []  # for each question in turn: what its session ends with before the answer
        self.fail: CallError | None = None  # the error of questions that contain "fail"
        self.failures: int | None = None  # how many of them fail; None: all
        self.acking = asyncio.Event()
        self.acking.set()
        self.answering = asyncio.Event()
        self.answering.set()
        self.cancelled = asyncio.Event()
        self.stopping = asyncio.Event()  # cancelled questions end with Done
        self.stopping.set()
        self.changed = asyncio.Condition()
        self.sessions = 0
        self.port = 0

    def kinds(self, session: int | None = None) -> list[str]:
        return [kind for number, kind, _ in self.requests if session in (None, number)]

    def received(self, kind: str) -> list[Any]:
        return [message for _, one, message in self.requests if one == kind]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds, which is checked after each message."""
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(condition)

    async def Session(self, request_iterator: Any, context: Any) -> None:
        self.sessions += 1
        session, lose = self.sessions, self.lose.pop(0) if self.lose else None
        refs: dict[int, pb.Picture] = {}
        totals: dict[int, int] = {}
        asked: list[pb.Ask] = []
        tasks: list[asyncio.Task[None]] = []
        answers: dict[int, asyncio.Task[None]] = {}
        arrived = asyncio.Condition()
        broken = asyncio.Event()

        writing = asyncio.Lock()

        async def write(response: pb.SessionResponse) -> None:
            async with writing:  # gRPC takes one message at a time
                await context.write(response)

        async def send(**response: Any) -> None:
            await asyncio.shield(write(pb.SessionResponse(**response)))  # a write that is cancelled ends the call

        acks = AckBatcher()

        async def acknowledge(view: pb.View) -> None:
            await self.acking.wait()
            for index in range(view.index, view.index + (view.views or 1)):
                for ack in acks.add(view.ref, index, last=complete(view.ref)):
                    await send(view_ack=ack)

        def complete(ref: int) -> bool:
            picture = refs[ref]
            return len(self.stored.get(picture.picture_id, ())) == picture.rows * picture.columns + 1

        async def answer(ask: pb.Ask, turns: list[str]) -> None:
            for ref in ask.refs:
                if refs[ref].picture_id not in self.stored:
                    self.stored[refs[ref].picture_id] = set()
                    await send(need_picture=pb.NeedPicture(request=ask.request, ref=ref))
            async with arrived:
                await arrived.wait_for(lambda: all(complete(ref) for ref in ask.refs))
            await self.answering.wait()
            parts = f"{self.reply_start} to {ask.question}".split(" ")
            plain = [{"text": part if count == 0 else f" {part}"} for count, part in enumerate(parts)]
            for sample in self.samples:
                for kind, fields in sample.items():
                    message = {"progress": pb.Progress, "rollout": pb.Rollout}[kind](request=ask.request, **fields)
                    await send(**{kind: message})
            for count, token in enumerate(self.tokens or plain):
                if count == lose:
                    broken.set()
                    return
                if ask.thinking or not token.get("thinking"):
                    await send(token=pb.Token(request=ask.request, **token))
            usage = pb.Usage(prompt_tokens=50, visual_tokens=36 * len(ask.refs), new_tokens=3, thinking_tokens=2)
            texts = [token.get("text", "") for token in self.tokens or plain if not token.get("thinking")]
            self.conversations[session, ask.request] = [*turns, "".join(texts)]
            del answers[ask.request]
            timing = pb.Timing(decode_us=1000, prefill_us=2000, first_token_us=3000, total_us=4000)
            fields = {"finish_reason": pb.FINISH_REASON_STOP, "usage": usage, "timing": timing, **self.done}
            await send(done=pb.Done(request=ask.request, **fields))

        async def stop(request: int) -> None:
            await self.stopping.wait()
            if answering := answers.pop(request, None):
                answering.cancel()
                await send(done=pb.Done(request=request, finish_reason=pb.FINISH_REASON_CANCELLED))

        async def take(kind: str, message: Any) -> None:
            if kind == "hello":
                refusal = UnavailableError("still loading", reason="LOADING") if self.loading else self.refusal
                self.loading = max(0, self.loading - 1)
                if refusal is not None:
                    await send(error=to_message(refusal))
                    await abort(context, refusal)
                fields = {
                    "limits": self.limits,
                    "samples_by_default": self.samples_by_default,
                    "picture_key": self.picture_key,
                }
                await send(welcome=pb.Welcome(model_id=self.model_id, codec_id=self.codec_id, **fields))
            elif kind == "picture":
                refs[message.ref] = message
                self.stored.setdefault(message.picture_id, set())
                if complete(message.ref) or message.want_state:
                    state = pb.PictureState(ref=message.ref, complete=complete(message.ref))
                    if not state.complete:
                        state.views.extend(sorted(self.stored[message.picture_id]))
                        state.image.bytes = len(self.files.get(message.ref, b""))
                        state.image.crc32 = zlib.crc32(self.files.get(message.ref, b""))
                    await send(picture_state=state)
            elif kind == "view":
                views = range(message.index, message.index + (message.views or 1))
                self.stored[refs[message.ref].picture_id].update(views)
                tasks.append(asyncio.create_task(acknowledge(message)))
                async with arrived:
                    arrived.notify_all()
            elif kind == "image_chunk":
                if self.cut_at is not None and message.offset + len(message.data) > self.cut_at:
                    self.cut_at = None
                    broken.set()
                    return
                if message.total:
                    started = self.files.get(message.ref, b"")[: message.offset]
                    totals[message.ref], self.files[message.ref] = message.total, started
                assert message.offset == len(self.files[message.ref])
                self.files[message.ref] += message.data
                await send(image_ack=pb.ImageAck(ref=message.ref, offset=message.offset))
                if len(self.files[message.ref]) == totals[message.ref]:
                    announced = refs[message.ref]
                    self.stored[announced.picture_id] = set(range(announced.rows * announced.columns + 1))
                    async with arrived:
                        arrived.notify_all()
            elif kind == "ask":
                asked.append(message)
                if self.ends:
                    error = self.ends.pop(0)
                    await send(error=to_message(error))
                    await abort(context, error)
                if len(answers) == self.limits.questions_in_flight:
                    await send(error=to_message(LimitError(reason="TOO_MANY_QUESTIONS"), message.request))
                elif message.previous_request and (session, message.previous_request) not in self.conversations:
                    gone = UnknownReferenceError(reason="CONVERSATION_GONE")
                    await send(error=to_message(gone, message.request))
                elif self.fail is not None and "fail" in message.question and self.failures != 0:
                    if self.failures is not None:
                        self.failures -= 1
                    await send(error=to_message(self.fail, message.request))
                else:
                    earlier = self.conversations[session, message.previous_request] if message.previous_request else []
                    self.prompts.append([*earlier, *(turn.text for turn in message.history), message.question])
                    answers[message.request] = asyncio.create_task(answer(message, self.prompts[-1]))
            elif kind == "cancel":
                self.cancelled.set()
                tasks.append(asyncio.create_task(stop(message.request)))

        async def listen() -> None:
            implied = ImpliedNumbers()
            async for request in request_iterator:
                self.wire.append(request.SerializeToString(deterministic=True))
                implied.restore(request)
                self.messages.append([field.name for field, _ in request.ListFields()])
                for field, parts in request.ListFields():
                    kind = field.name.removesuffix("s")
                    for part in _single(parts) if isinstance(parts, MutableSequence) else [parts]:
                        async with self.changed:
                            self.requests.append((session, kind, part))
                            await take(kind, part)
                            self.changed.notify_all()

        listening, breaking = asyncio.create_task(listen()), asyncio.create_task(broken.wait())
        try:
            await asyncio.wait([listening, breaking], return_when=asyncio.FIRST_COMPLETED)
            if broken.is_set():
                await abort(context, UnavailableError("the link was cut"))
            await listening
        finally:
            for task in (listening, breaking, *tasks, *answers.values()):
                task.cancel()


@pytest_asyncio.fixture
async def server() -> AsyncIterator[FakeServer]:
    """Listening on a free port of this machine."""
    servicer = FakeServer()
    running = make_server()
    tofc_pb2_grpc.add_TofcServiceServicer_to_server(servicer, running)
    servicer.port = bind(running, "127.0.0.1", 0)
    await running.start()
    yield servicer
    await running.stop(0)


def _single(parts: MutableSequence[Any]) -> Iterator[Any]:
    """Yield the parts of a message, with one packet in each View."""
    for part in parts:
        if isinstance(part, pb.View) and not part.views:
            for index, packet in enumerate(part.packets, part.index):
                yield pb.View(ref=part.ref, index=index, packets=[packet])
        else:
            yield part


Begin = Callable[..., Session]


@pytest_asyncio.fixture
async def begin(server: FakeServer) -> AsyncIterator[Begin]:
    """Return what opens sessions with the fake server; they are closed after the test."""
    sessions: list[Session] = []

    def make(encoder: FakeEncoder | None = None, **more: Any) -> Session:
        target = Target(address=f"127.0.0.1:{server.port}")
        sessions.append(Session(target, encoder or FakeEncoder(), **{"retry": AT_ONCE, **more}))
        return sessions[-1]

    yield make
    for session in sessions:
        await session.close()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A picture of one view."""
    return _save(tmp_path / "small.png", (200, 160))


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A picture of 4 × 5 crops and the global view: more views than may be unacknowledged."""
    return _save(tmp_path / "wide.png", (1120, 896))


def _save(path: Path, size: tuple[int, int]) -> Path:
    Image.linear_gradient("L").resize(size).convert("RGB").save(path)
    return path


@pytest.fixture
def serving() -> Iterator[FakeServer]:
    """The fake server in its own thread: the command runs an event loop itself."""
    ready, servicers = threading.Event(), list[FakeServer]()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        servicer, running = FakeServer(), make_server()
        tofc_pb2_grpc.add_TofcServiceServicer_to_server(servicer, running)
        servicer.port = bind(running, "127.0.0.1", 0)
        await running.start()
        servicers.append(servicer)
        ready.set()
        await stop.wait()
        await running.stop(0)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(20)
    yield servicers[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@pytest.fixture
def encoders(monkeypatch: pytest.MonkeyPatch) -> list[FakeEncoder]:
    """Give the command fake encoders; return those that it opened."""
    made: list[FakeEncoder] = []

    class Opened:
        @staticmethod
        def open(model: Path, choice: RateChoice, compute: Compute, feature_codec: str) -> FakeEncoder:
            made.append(FakeEncoder(setting=choice.setting(CODEC), feature_codec=feature_codec))
            return made[-1]

    monkeypatch.setattr(options, "TowerEncoder", Opened)
    return made
