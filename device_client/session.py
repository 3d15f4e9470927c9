"""Questions about pictures, over a stream that may break: connect, send, ask, resume.

Promises that a picture is encoded once and sent only to a server that does not have it, that a lost link
is repaired without bothering the person, and that a question given up is cancelled on the server. Leaves
one connection to `link`, a picture's way to `delivery`.

>>> from pathlib import Path
>>> from device_client.encoder import TowerEncoder
>>> async def demo() -> None:                                               # doctest: +SKIP
...     async with Session(Target(), TowerEncoder.open(Path("models/nano"))) as session:
...         cat = session.open(Path("cat.png"))
...         async for piece in session.ask([cat], "what is in the picture?"):
...             print(piece.text, end="")
...         report = await session.ask([cat], "how many cats are there?").result()
...         assert report.bytes_picture == 0                               # the server has it by now
"""

from __future__ import annotations

import asyncio
import enum
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from device_client.delivery import Delivery, Shipment
from device_client.encoder import Encoder, EncoderThread
from device_client.errors import ReplyError, UseError
from device_client.link import NOT_BACK, SESSION_CLOSED, Conversation, Event, Link, LinkLost, Target
from device_client.meter import Traffic
from device_client.patience import Clock, Missing
from device_client.picture import Picture
from device_client.report import Report, plausible, spent
from device_client.transcript import Piece, Transcript
from shared.rpc.errors import DeadlineError, LimitError, MismatchError, TofcError, UnavailableError
from shared.rpc.tofc.v1 import tofc_pb2 as pb

UINT32 = 2**32 - 1
SEED_BITS = 14  # of a seed chosen here: two bytes on the link, and another answer each time it is asked again
_FINISH = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_CANCELLED: "cancelled",
}


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How hard a lost link is repaired. The wait doubles from ``first_s`` up to ``most_s``."""

    losses: int = 3  # of one question that brought it nothing; one that breaks the server is not asked for ever
    askings: int = 1000  # of one question in all: a server that always takes some of a picture would get it for ever
    connects: int = 6  # tries to get the link back each time
    first_s: float = 0.25
    most_s: float = 4.0

    def wait_s(self, failed: int) -> float:
        """Seconds after ``failed`` failures, a little at random so that many devices do not come back at once."""
        doubled = 2.0 ** min(failed - 1, 60)  # a server may load for hours
        return min(self.first_s * doubled, self.most_s) * random.uniform(0.8, 1.2)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is drawn; None is as the server's checkpoint says.

    ``seed`` None: one is chosen, so that asking again after a lost link repeats the answer.
    """

    max_tokens: int = 0  # thinking included; 0: the server's default
    temperature: float | None = None  # 0: greedy
    top_p: float | None = None
    top_k: int | None = None  # 0: off
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 0:
            raise UseError(f"--max-tokens must be 0 (the server's default) or more, got {self.max_tokens}")
        if self.temperature is not None and not 0 <= self.temperature <= 10:
            raise UseError(f"temperature {self.temperature:g} is not allowed; give 0 (greedy) to 10")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UseError(f"top_p {self.top_p:g} is not allowed; give more than 0, at most 1")
        if self.top_k is not None and not 0 <= self.top_k < 2**32:
            raise UseError(f"top_k {self.top_k} is not allowed; give 1 or more, or 0 for all words")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise UseError(f"seed {self.seed} is not allowed; give 0 to 2**64 - 1")


class Answer:
    """An answer on its way: iterate once for its pieces, or await `result`; then `report` is there."""

    def __init__(self, pieces: Callable[[Answer], AsyncGenerator[Piece, None]]) -> None:
        self.report: Report | None = None
        self._pieces = pieces(self)

    def __aiter__(self) -> AsyncGenerator[Piece, None]:
        return self._pieces

    async def result(self) -> Report:
        """Wait for the end. Raises what ended it otherwise."""
        async with aclosing(self._pieces) as pieces:
            async for _ in pieces:
                pass
        assert self.report is not None, "an answer can be awaited once"
        return self.report

    async def aclose(self) -> None:
        """Give the question up; the server stops at its next step."""
        await self._pieces.aclose()


@dataclass(kw_only=True)
class _Course:
    """What happened to one question so far."""

    pictures: Sequence[Picture]
    question: str
    history: Conversation
    sampling: Sampling
    thinking: bool  # whether it is wanted
    said: Transcript = field(default_factory=Transcript)
    after: int = 0  # the question that it was said to go on from, instead of all turns
    askings: int = 1
    losses: int = 0
    in_vain: int = 0  # of them, in a row: nothing more of its pictures had been acknowledged
    first_token_ms: float = 0.0
    shipments: list[Shipment] = field(default_factory=list)
    refs: dict[int, tuple[Picture, Delivery]] = field(default_factory=dict)
    _seed: int = field(default_factory=lambda: random.getrandbits(SEED_BITS))

    @property
    def turns(self) -> list[pb.Turn]:
        """Of the history."""
        turns = []
        for asked, said in self.history:
            turns += [pb.Turn(role=pb.ROLE_USER, text=asked), pb.Turn(role=pb.ROLE_ASSISTANT, text=said)]
        return turns

    @property
    def sending(self) -> bool:
        """Whether the server has not all of its pictures yet, and gets more."""
        return any(not (one.complete or one.failed) for _, one in self.refs.values())

    def lost(self) -> None:
        """Its link was."""
        gained = self.sending and any(delivery.acknowledged for _, delivery in self.refs.values())
        self.losses += 1
        self.in_vain = 0 if gained else self.in_vain + 1

    def drawn(self, welcome: pb.Welcome) -> pb.Sampling | None:
        """How the answer is drawn; None where nothing is to be said about it."""
        wanted, seed = self.sampling, self.sampling.seed
        if seed is None and (welcome.draws if wanted.temperature is None else wanted.temperature > 0):
            seed = self._seed
        sampling = pb.Sampling(
            max_tokens=wanted.max_tokens,
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            top_k=wanted.top_k,
            seed=seed,
        )
        return sampling if sampling.ListFields() else None


class Step(enum.Enum):
    """What to do about a question that ended with an error."""

    GIVE_UP = enum.auto()
    ASK_AGAIN = enum.auto()
    CONNECT_AGAIN = enum.auto()


def next_step(error: TofcError, course: _Course, retry: Retry, *, closed: bool) -> Step:
    """``closed``: the session is, by its user."""
    if course.askings >= retry.askings:
        return Step.GIVE_UP
    if error.reason == "VIEWS_MISSING" and course.sending:
        return Step.ASK_AGAIN  # a slow tower or link outlasted the server's patience
    if error.reason == "CONVERSATION_GONE" and course.after:
        return Step.ASK_AGAIN  # the server did not keep it: with all turns
    lost = error.reason == "SESSION_USED_UP" or (isinstance(error, UnavailableError) and not closed)
    return Step.CONNECT_AGAIN if lost and course.in_vain < retry.losses else Step.GIVE_UP


class Session:
    """A session with one server; lasts over lost links. Questions may be asked at the same time."""

    def __init__(
        self,
        target: Target,
        encoder: Encoder | EncoderThread,
        *,
        retry: Retry = Retry(),
        wait_s: float | None = None,
        tell: Callable[[str], None] = lambda _: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``wait_s``: for a server that is not ready. None: as long as it loads its model, and for no other reason.

        ``tell`` gets a line for the person when such a wait begins.
        """
        self.encoder = encoder if isinstance(encoder, EncoderThread) else EncoderThread(encoder)
        self.connect_ms = 0.0  # of the last connecting, handshake included
        self._target = target
        self._retry = retry
        self._wait_s = wait_s
        self._tell = tell
        self._sleep = sleep
        self._clocks: set[Clock] = set()  # of what is under way
        self._closed = False
        self._link: Link | None = None
        self._connecting = asyncio.Lock()
        self._deliveries: dict[bytes, Delivery] = {}  # of this link, by picture_id
        self._known: set[bytes] = set()  # pictures of which the server had something at some time
        self._before = Traffic()  # of the links that ended
        self._metered = True
        self._load_reported = False
        self._counted: Link | None = None  # the last link in self._before
        self._charged: Traffic | None = Traffic()  # what earlier questions were told that they cost

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """End the session for good, and the encoder thread, also one that was given. What is asked hears LinkLost."""
        self._closed = True
        self.encoder.close()
        if self._link is not None:
            await self._leave(self._link)

    def open(self, path: Path) -> Picture:
        """Open a picture for this session's encoder. Raises ImageError."""
        return self.encoder.open(path)

    async def connect(self, timeout_s: float | None = None) -> pb.Welcome:
        """Connect now rather than at the first question; returns what the server said. Raises as `Link.open`."""
        late = UnavailableError(f"{self._target.address} was not there within {timeout_s or 0:g} s")
        with self._timed(timeout_s) as clock:
            async with clock.within(late):
                return (await self._connected()).welcome

    def traffic(self) -> Traffic | None:
        """Bytes on all sockets of this session so far; None where the kernel does not tell."""
        now = Traffic() if self._link in (None, self._counted) else self._link.traffic()
        return self._before + now if now is not None and self._metered else None

    def ask(
        self,
        pictures: Sequence[Picture],
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        sampling: Sampling = Sampling(),
        thinking: bool = False,
        timeout_s: float | None = None,
    ) -> Answer:
        """Ask about pictures. ``history`` holds earlier (question, answer) turns about the same pictures.

        With ``thinking`` what the model thinks before it answers comes too, in pieces and a report of its own field.
        Nothing happens before the answer is iterated or awaited. It raises `UseError` for an empty question,
        `DeadlineError` after ``timeout_s``, `UnavailableError` when the link cannot be repaired, and what the
        server says otherwise (`TofcError`).
        """
        if not question.strip():
            raise UseError("the question is empty; ask something, for instance: what is in the picture?")
        try:
            question.encode()
        except UnicodeEncodeError as error:
            raise UseError(
                f"the question is no UTF-8 text at character {error.start + 1}; check the encoding of its source"
            ) from None
        earlier = tuple((asked, said) for asked, said in history)
        course = _Course(pictures=pictures, question=question, history=earlier, sampling=sampling, thinking=thinking)
        return Answer(lambda answer: self._pieces(answer, course, timeout_s))

    async def _pieces(
        self,
        answer: Answer,
        course: _Course,
        timeout_s: float | None,
    ) -> AsyncGenerator[Piece, None]:
        with self._timed(timeout_s) as clock:
            async with aclosing(self._pieces_within(clock, answer, course, timeout_s)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _pieces_within(
        self, clock: Clock, answer: Answer, course: _Course, timeout_s: float | None
    ) -> AsyncGenerator[Piece, None]:
        begun = time.perf_counter()
        late = DeadlineError(
            f"no answer within {timeout_s or 0:g} s; give it more time (--timeout) or fewer tokens (--max-tokens)"
        )
        before = self._charged
        link: Link | None = None
        request, queue = 0, asyncio.Queue[Event]()
        asked = False  # to be cancelled when given up
        self.encoder.start()  # imports and weights while connecting
        try:
            while True:
                try:
                    if link is None:
                        async with clock.within(late if self._link is None else self._not_back(timeout_s)):
                            connected = await self._connected()
                        async with clock.within(late):
                            request, queue = await connected.new_question(
                                most_tokens=course.sampling.max_tokens, pictures=len(course.pictures)
                            )
                        link = connected
                        self._pose(link, request, queue, course, clock)
                        asked = True
                    async with clock.within(late):
                        event = await queue.get()
                    if isinstance(event, Exception):
                        raise event
                except TofcError as error:
                    if link is None:  # the tries to connect are used up
                        raise
                    step = next_step(error, course, self._retry, closed=self._closed)
                    if step is Step.GIVE_UP:
                        raise
                    if error.reason == "CONVERSATION_GONE":
                        link.unlearn(course.history, course.after)
                    elif error.reason == "SESSION_USED_UP":
                        link.end(error)
                    self._forget(link, request, course, queue, cancel=False)
                    link = None
                    course.askings += 1
                    if step is Step.CONNECT_AGAIN:
                        course.lost()
                        await self._sleep(self._retry.wait_s(max(course.in_vain, 1)))
                    continue
                if isinstance(event, pb.Token):
                    course.first_token_ms = course.first_token_ms or _ms_since(begun)
                    for piece in course.said.take(event):
                        yield piece
                elif isinstance(event, pb.NeedPicture):
                    self._send_again(event.ref, course)
                else:
                    break
            for piece in course.said.end():
                yield piece
            if course.said.answer.text and event.finish_reason != pb.FINISH_REASON_CANCELLED:
                link.remember((*course.history, (course.question, course.said.answer.text)), request)
            self._forget(link, request, course, queue, cancel=False)
            link = None
            answer.report = self._report(course, event, before, _ms_since(begun))
        finally:
            if link is not None:
                self._forget(link, request, course, queue, cancel=asked)
            self._charged = self.traffic()

    def _pose(
        self,
        link: Link,
        request: int,
        queue: asyncio.Queue[Event],
        course: _Course,
        clock: Clock,
    ) -> None:
        """Announce what the link does not know yet and put the question; views follow as they are encoded."""
        if link.failure is not None:  # while this question waited for its turn; deliveries may be the next link's
            raise link.failure
        _check_limits(link.limits, course)
        course.said.restart()
        course.refs.clear()
        for picture in course.pictures:
            delivery = self._deliveries.get(picture.picture_id)
            if delivery is None or delivery.failed:
                delivery = delivery or Delivery(link, self.encoder, ref=len(self._deliveries) + 1)
                self._deliveries[picture.picture_id] = delivery
                patient = picture.picture_id in self._known
                course.shipments.append(delivery.start(picture, patient=patient))
            delivery.waiting.add(queue)
            course.refs[delivery.ref] = (picture, delivery)
        refs = [self._deliveries[picture.picture_id].ref for picture in course.pictures]
        left_ms = 0 if clock.left_s is None else int(min(max(clock.left_s * 1e3, 1), UINT32))
        course.after = link.known(course.history)
        ask = pb.Ask(
            request=request,
            refs=refs,
            question=course.question,
            after=course.after,
            history=() if course.after else course.turns,
            sampling=course.drawn(link.welcome),
            deadline_ms=left_ms,
            thinking=course.thinking,
        )
        link.send(asks=[ask])

    def _send_again(self, ref: int, course: _Course) -> None:
        if ref not in course.refs:
            raise ReplyError(f"the server misses picture {ref}, which the question did not name")
        picture, delivery = course.refs[ref]
        if not delivery.unheard:  # else the server asked before it heard the last announcement, which is enough
            course.shipments.append(delivery.start(picture, again=True))

    def _forget(self, link: Link, request: int, course: _Course, queue: asyncio.Queue[Event], *, cancel: bool) -> None:
        for _, delivery in course.refs.values():
            delivery.waiting.discard(queue)
            if cancel and not delivery.waiting:
                delivery.abandon()
        link.drop_question(request, cancel=cancel)

    async def _connected(self) -> Link:
        """The link, made or repaired where there is none."""
        async with self._connecting:
            if self._link is not None and self._link.failure is None:
                return self._link
            repairing = self._link is not None
            if self._link is not None:
                await self._leave(self._link)
            self._known.update(
                one for one, delivery in self._deliveries.items() if delivery.complete or delivery.acknowledged
            )
            self._deliveries = {}
            missing = Missing(
                address=self._target.address, wait_s=self._wait_s, repairing=repairing, connects=self._retry.connects
            )
            while not self._closed:
                begun = time.perf_counter()
                try:
                    encoder = self.encoder.encoder
                    link = await Link.open(self._target, encoder.model_id, encoder.codec_id)
                except (UnavailableError, LimitError) as error:
                    pause = missing.pause_s(error, time.perf_counter() - begun, self._retry.wait_s(missing.tries + 1))
                    if missing.stands_still(error):
                        if line := missing.line(error):
                            self._tell(line)
                        for clock in self._clocks:
                            clock.put_off(time.perf_counter() - begun + pause)
                    await self._sleep(pause)
                    continue
                self._link = link
                if self._closed:  # meanwhile
                    await self._leave(link)
                    break
                self.connect_ms = _ms_since(begun)
                return link
            raise LinkLost(SESSION_CLOSED)

    @contextmanager
    def _timed(self, timeout_s: float | None) -> Iterator[Clock]:
        clock = Clock(timeout_s)
        self._clocks.add(clock)
        try:
            yield clock
        finally:
            self._clocks.discard(clock)

    def _not_back(self, timeout_s: float | None) -> LinkLost:
        return LinkLost(
            f"{self._target.address} was lost and did not come back within {timeout_s or 0:g} s", reason=NOT_BACK
        )

    async def _leave(self, link: Link) -> None:
        await link.close()
        traffic = link.traffic()
        if link is self._counted:
            return
        self._counted = link
        if traffic is None:
            self._metered = False
        else:
            self._before += traffic

    def _report(self, course: _Course, done: pb.Done, before: Traffic | None, total_ms: float) -> Report:
        up, down = spent(before, self.traffic())
        fresh = [encoded for shipment in course.shipments for encoded in shipment.fresh]
        timings = {
            "connect": self.connect_ms,
            "load": 0.0 if self._load_reported or not fresh else self.encoder.load_ms,
            "views": sum(encoded.views_ms for encoded in fresh),
            "tower": sum(encoded.tower_ms for encoded in fresh),
            "encode": sum(encoded.encode_ms for encoded in fresh),
            "upload": sum(shipment.upload_ms for shipment in course.shipments),
            "server_decode": plausible(done.timing.decode_ms),
            "server_wait": plausible(done.timing.wait_ms),
            "server_prefill": plausible(done.timing.prefill_ms),
            "server_first_token": plausible(done.timing.first_token_ms),
            "server_total": plausible(done.timing.total_ms),
            "first_token": course.first_token_ms,
            "total": total_ms,
        }
        self._load_reported = self._load_reported or bool(fresh)
        self.connect_ms = 0.0  # the next question did not pay for it
        usage, form = done.usage, self.encoder.encoder.form
        return Report(
            question=course.question,
            answer=course.said.answer.text,
            thinking=course.said.thinking.text.strip() if course.thinking else None,
            unanswered=done.unanswered,
            finish_reason=_FINISH.get(done.finish_reason, "unspecified"),
            bytes_picture=sum(shipment.n_bytes for shipment in course.shipments),
            bytes_up=up,
            bytes_down=down,
            views=sum(picture.n_views for picture in course.pictures),
            views_sent=sum(shipment.n_views for shipment in course.shipments),
            features=usage.visual_tokens,
            reconnects=course.losses,
            timings={stage: round(ms, 2) for stage, ms in timings.items()},
            usage={
                "prompt_tokens": usage.prompt_tokens,
                "visual_tokens": usage.visual_tokens,
                "new_tokens": usage.new_tokens,
                "thinking_tokens": usage.thinking_tokens,
            },
            mode="image" if form else "features",
            image_codec=form.codec if form else None,
            image_quality=form.quality if form else None,
            image_scale=form.scale if form else None,
        )


def _check_limits(limits: pb.Limits, course: _Course) -> None:
    """Refuse here what the server would refuse; a limit of 0 is one that it did not state."""
    pictures = course.pictures
    size = sum(len(text.encode()) for text in (course.question, *(text for turn in course.history for text in turn)))
    views = max((picture.n_views for picture in pictures), default=0)
    pixels, (width, height) = max(((one.form_pixels, one.form_size) for one in pictures), default=(0, (0, 0)))
    counted = "pixels of one picture" if width * height == pixels else "pixels of one picture, padded to a square"
    if pixels and not limits.image_pixels:
        raise MismatchError(
            "this server takes no images (--mode image); start it with `edge-server serve --take-images`, or leave "
            "--mode image out",
            reason="IMAGES_NOT_TAKEN",
        )
    exceeded = "LIMIT_EXCEEDED"
    for found, most, what, remedy, reason in (
        (len(pictures), limits.pictures_per_question, "pictures in one question", "ask about fewer", exceeded),
        (views, limits.views_per_picture, "views of one picture", "scale the picture down", exceeded),
        (pixels, limits.image_pixels, counted, "lower --scale", exceeded),
        (size, limits.question_bytes, "bytes of question", "shorten it", "QUESTION_TOO_LONG"),
        (course.sampling.max_tokens, limits.new_tokens, "new tokens", "lower --max-tokens", exceeded),
    ):
        if most and found > most:
            raise LimitError(f"{found} {what}, this server allows {most}; {remedy}", reason=reason)


def _ms_since(begun: float) -> float:
    return (time.perf_counter() - begun) * 1e3
