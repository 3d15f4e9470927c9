"""Questions about pictures to a server, or one of several: submit, receive, and ask again when a link is lost.

    ask ─ PendingQuestion ─→ submit ─→ events ─┬─ Token, Done ──→ Delta … Report
                               ↑               ├─ NeedPicture ──→ upload again
                               └── next_step ──┴─ error

Promises that a picture is encoded once and sent only to a server that does not have it, that a lost link is replaced
without the user's help, and that a question which is given up is cancelled on the server. Leaves the link to
`connection`, uploading pictures to `uploads`, and every decision about an error to `next_step`.

>>> from pathlib import Path
>>> from device_client.encoder import TowerEncoder
>>> async def demo() -> None:                                               # doctest: +SKIP
...     async with Session(Target(), TowerEncoder.open(Path("models/nano"))) as session:
...         cat = session.open(Path("cat.png"))
...         async for delta in session.ask([cat], "what is in the picture?"):
...             print(delta.text, end="")
...         report = await session.ask([cat], "how many cats are there?").result()
...         assert report.bytes_picture == 0                               # the server has it by now
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Self

from device_client.auto_encoder import AutoEncoder
from device_client.chat_options import ChatOptions, as_conversation, places_of
from device_client.connection import Connection
from device_client.deadline import Deadline
from device_client.encoder import Encoder, EncoderThread
from device_client.link import NOT_BACK, Link, Target
from device_client.meter import Traffic
from device_client.next_step import BUSY, AskAgain, Raise, Retry, next_step
from device_client.picture import Picture
from device_client.question import PendingQuestion, Submission, check_text
from device_client.reasoning import Reasoning
from device_client.report import Report, build_report, measured, spent
from device_client.retry_policy import RetryPolicy
from device_client.rollouts import SampleStatus
from device_client.sampling import Sampling
from device_client.servers import Servers, named
from device_client.spans import end_span
from device_client.transcript import Delta
from device_client.uploads import Uploads
from tofc.errors import CallError, DeadlineError, LinkLostError, ReplyError, UnavailableError
from tofc.model.prompt import Turn
from tofc.tracing import OFF, Tracer
from tofc.v1 import tofc_pb2 as pb

RETRY_POLICY = RetryPolicy()
SAMPLING = Sampling()  # all as the server's checkpoint says
PLAIN = Reasoning()  # no samples


class Answer:
    """An answer that is being received: iterate once for its deltas, or await `result`; then `report` is set."""

    def __init__(self, deltas: Callable[[Answer], AsyncGenerator[Delta, None]]) -> None:
        self.report: Report | None = None
        self.samples = SampleStatus()  # that it is found from: how far they are
        self._deltas = deltas(self)

    def __aiter__(self) -> AsyncGenerator[Delta, None]:
        return self._deltas

    async def result(self) -> Report:
        """Wait for the end. Raises the error that ended it otherwise."""
        async with aclosing(self._deltas) as deltas:
            async for _ in deltas:
                pass
        assert self.report is not None, "an answer can be awaited once"
        return self.report

    async def aclose(self) -> None:
        """Give the question up; the server stops at its next step."""
        await self._deltas.aclose()


class Session:
    """A session with a server, or one of several, which outlasts lost links. Questions may be asked at one time."""

    def __init__(
        self,
        target: Target | Sequence[Target],
        encoder: Encoder | EncoderThread,
        *,
        retry: RetryPolicy = RETRY_POLICY,
        wait_s: float | None = None,
        log: Callable[[str], None] = lambda _: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        device: str | None = None,
        tracer: Tracer = OFF,
    ) -> None:
        """Prepare a session; nothing is connected or loaded yet.

        Of several targets the one that `device` (None: this machine and its token) is assigned to is asked, and another
        one while that one cannot serve.
        `wait_s`: how long to wait for a server that is not ready. None: while it loads its model, has lost its engine
        or is busy with other devices, and for no other reason. `log` gets a line for the user when such a wait
        starts.
        """
        self.encoder = encoder if isinstance(encoder, EncoderThread) else EncoderThread(encoder)
        self._policy = retry
        self._sleep = sleep
        self._log = log
        self._connection = Connection(
            Servers.of(target, device), self.encoder.encoder, policy=retry, wait_s=wait_s, log=log, sleep=sleep
        )
        self._uploads = Uploads(self.encoder)
        self._choice = None
        if isinstance(auto := self.encoder.encoder, AutoEncoder):
            from device_client.mode_choice import ModeChoice  # which only this encoder needs

            self._choice = ModeChoice(auto)
        self._tracer = tracer
        self._load_reported = False
        self._reported: Traffic | None = Traffic()  # up to the end of the last question

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """End the session for good, and the encoder thread, even one that was passed in.

        Pending questions end with LinkLostError.
        """
        self.encoder.close()
        await self._connection.close()

    def open(self, path: Path) -> Picture:
        """Open a picture for this session's encoder. Raises ImageError."""
        return self.encoder.open(path)

    async def connect(self, timeout_s: float | None = None) -> pb.Welcome:
        """Connect now instead of at the first question; return the server's Welcome. Raises as `Link.open`."""
        servers = self._connection.servers
        late = UnavailableError(
            f"{servers} could not be reached within {timeout_s or 0:g} s; check that it is running, or allow more time"
        )
        with self._connection.deadline(timeout_s) as deadline:
            async with deadline.within(late):
                return (await self._connection.link()).welcome

    def traffic(self) -> Traffic | None:
        """Return the bytes on all sockets of this session so far; None where the kernel does not count them."""
        return self._connection.traffic()

    def ask(
        self,
        pictures: Sequence[Picture],
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        sampling: Sampling = SAMPLING,
        thinking: bool = False,
        reasoning: Reasoning = PLAIN,
        progress: bool = False,
        timeout_s: float | None = None,
    ) -> Answer:
        """Ask about pictures. `history` holds earlier (question, answer) turns about the same pictures.

        With `thinking` the answer also yields what the model thinks before it answers, as separate deltas; with
        `progress`, deltas that say how far the samples of `reasoning` are.
        Nothing happens until the answer is iterated or awaited. It raises `UsageError` for an empty question,
        `DeadlineError` after `timeout_s`, `UnavailableError` when the link cannot be replaced, and the error that the
        server replies with (`CallError`).
        """
        turns: list[Turn] = []
        for asked, answered in history:
            turns += [Turn(role="user", text=asked), Turn(role="assistant", text=answered)]
        return self.converse(
            pictures,
            [*turns, Turn(role="user", text=question)],
            sampling=sampling,
            thinking=thinking,
            reasoning=reasoning,
            progress=progress,
            timeout_s=timeout_s,
        )

    def converse(
        self,
        pictures: Sequence[Picture],
        turns: Sequence[Turn],
        *,
        sampling: Sampling = SAMPLING,
        thinking: bool = False,
        reasoning: Reasoning = PLAIN,
        stop: Sequence[str] = (),
        thinking_budget: int | None = None,
        progress: bool = False,
        timeout_s: float | None = None,
    ) -> Answer:
        """Ask with all turns of a conversation, which show `pictures` in order; the last one is the user's.

        The answer ends before the first of the texts `stop`. `thinking_budget`: most tokens of thinking, which
        `sampling.max_tokens` then does not count. Otherwise like `ask`. It also raises `MismatchError` if the server is
        older than places of pictures and stop texts.
        """
        question = turns[-1]
        check_text(question.text)
        pending = PendingQuestion(
            pictures=pictures,
            text=question.text,
            history=as_conversation(turns[:-1]),
            sampling=sampling,
            thinking=thinking,
            reasoning=reasoning,
            chat=ChatOptions(stop=tuple(stop), thinking_budget=thinking_budget, places=places_of(turns)),
            policy=self._policy,
        )
        return Answer(lambda answer: self._deltas(answer, pending, progress, timeout_s))

    async def _deltas(
        self, answer: Answer, question: PendingQuestion, progress: bool, timeout_s: float | None
    ) -> AsyncGenerator[Delta, None]:
        started = time.perf_counter()
        before = self._reported
        question.span = self._tracer.start("ask", started, pictures=len(question.pictures))
        self.encoder.start()  # imports and loads weights while the link is opened
        with self._connection.deadline(timeout_s) as deadline:
            failure: BaseException | None = None
            try:
                while not isinstance(event := await self._next_event(question, deadline), pb.Done):
                    if isinstance(event, pb.NeedPicture):
                        self._upload_again(event.ref, question)
                        continue
                    if isinstance(event, (pb.Progress, pb.Rollout)):
                        question.samples.add(event)
                        answer.samples = question.samples
                        if progress and isinstance(event, pb.Progress):
                            yield Delta(text="", progress=question.samples.progress)
                        continue
                    question.first_token_ms = question.first_token_ms or _ms_since(started)
                    for delta in question.transcript.add(event):
                        yield delta
                for delta in question.transcript.end():
                    yield delta
                link = self._end(question, event)
                answer.report = self._report(question, event, link, before, _ms_since(started))
            except BaseException as error:
                failure = error
                raise
            finally:
                end_span(question, started, failure)
                self._release(question, cancel=True)
                self._reported = self.traffic()

    async def _next_event(
        self, question: PendingQuestion, deadline: Deadline
    ) -> pb.Token | pb.Progress | pb.Rollout | pb.NeedPicture | pb.Done:
        """Return the question's next event. Submit the question before the first one, and again after an error."""
        while True:
            submission = question.submission or await self._reserve(question, deadline)
            try:
                if not submission.sent:
                    self._submit(question, submission, deadline)
                async with deadline.within(_late(deadline)):
                    event = await submission.events.get()
                if isinstance(event, Exception):
                    raise event
                return event
            except CallError as error:
                left_s = self._connection.patience_s(deadline, question.waited_s)
                others = self._connection.servers.several
                step = next_step(error, question, closed=self._connection.closed, left_s=left_s, others=others)
                if isinstance(step, Raise):
                    if others:
                        raise named(submission.link.address, error) from None
                    raise
                await self._recover(question, submission, error, step)

    async def _reserve(self, question: PendingQuestion, deadline: Deadline) -> Submission:
        """Wait for a link and for a place among its questions. Raises if there is no link, or none in time."""
        servers, timeout_s = self._connection.servers, deadline.timeout_s or 0
        not_back = LinkLostError(
            f"{servers} was lost and did not come back within {timeout_s:g} s; ask again, or allow more time",
            reason=NOT_BACK,
        )
        async with deadline.within(_late(deadline) if self._connection.current is None else not_back):
            link = await self._connection.link()
        async with deadline.within(_late(deadline)):
            request, events = await link.reserve_question(
                max_tokens=question.most_tokens(link.welcome),
                pictures=len(question.pictures),
                samples=question.reasoning.samples,
                rollouts=question.reasoning.rollouts,
            )
        question.submission = Submission(link=link, request=request, events=events)
        return question.submission

    def _submit(self, question: PendingQuestion, submission: Submission, deadline: Deadline) -> None:
        """Announce pictures that the link does not have, then send the question; views follow as they are encoded."""
        link = submission.link
        if link.failure is not None:  # while the question waited for its place: uploads are the next link's by now
            raise link.failure
        question.sent = question.pictures
        if self._choice is not None:
            question.sent, decision = self._choice.choose(question.pictures, link)
            if question.decision is None or question.decision.mode != decision.mode:  # else asked again
                question.decision = decision
        question.check_limits(link.limits)
        question.transcript.start_attempt()
        question.samples = SampleStatus()
        question.uploads.clear()
        refs, starts_upload = [], False
        for picture in question.sent:
            upload, stats = self._uploads.ensure(link, picture)
            if stats is not None:
                question.upload_stats.append(stats)
                starts_upload = True
            upload.waiting.add(submission.events)
            question.uploads[upload.ref] = (picture, upload)
            refs.append(upload.ref)
        question.previous_request = link.conversations.use(question.history)
        ask = question.message(submission.request, refs, link.welcome, deadline.left_s)
        link.send(asks=[ask], hold=starts_upload)
        submission.sent = True

    async def _recover(
        self, question: PendingQuestion, submission: Submission, error: CallError, step: AskAgain | Retry
    ) -> None:
        """Do what must be done before the question is submitted again."""
        if isinstance(step, AskAgain) and step.forget_conversation:
            submission.link.conversations.forget(question.history, question.previous_request)
        if isinstance(step, Retry) and step.end_session:
            submission.link.end(error)
        self._release(question, cancel=False)
        question.attempts += 1
        pause_s = 0.0
        if isinstance(step, Retry):
            question.losses += 1
            question.fruitless_losses = step.fruitless_losses
            pause_s = self._policy.pause_s(max(step.fruitless_losses, 1))
        if step.after_s:
            pause_s = self._policy.busy_pause_s(step.after_s)
            if not question.refusals:  # told once: a person need not see every try
                self._log(f"the server at {submission.link.address} is busy; asking again in {pause_s:.2g} s")
            question.refusals += 1
            question.shortages += error.reason != BUSY
            question.waited_s += pause_s
        if step.after_s or isinstance(step, Retry):
            await self._sleep(pause_s)

    def _upload_again(self, ref: int, question: PendingQuestion) -> None:
        if ref not in question.uploads:
            raise ReplyError(
                f"the server requested picture {ref}, which the question did not name; device and server may be of "
                "different versions"
            )
        picture, upload = question.uploads[ref]
        if not upload.awaiting_reply:  # else the server sent this before it read the last announcement
            question.upload_stats.append(upload.start(picture, resend=True))

    def _end(self, question: PendingQuestion, done: pb.Done) -> Link:
        """Release an answered question and remember its conversation, which later questions may continue.

        Return the link that it was answered over.
        """
        assert question.submission is not None
        link = question.submission.link
        text = question.transcript.answer.text
        if text and done.finish_reason != pb.FINISH_REASON_CANCELLED:
            link.conversations.add((*question.conversation, ("assistant", text)), question.submission.request)
        self._release(question, cancel=False)
        return link

    def _release(self, question: PendingQuestion, *, cancel: bool) -> None:
        """End the question's submission, if it has one. With `cancel` the server and the uploads stop work on it."""
        submission, question.submission = question.submission, None
        if submission is None:
            return
        cancel = cancel and submission.sent
        for _, upload in question.uploads.values():
            upload.waiting.discard(submission.events)
            if cancel and not upload.waiting:
                upload.abandon()
        submission.link.drop_question(submission.request, cancel=cancel)

    def _report(
        self, question: PendingQuestion, done: pb.Done, link: Link, before: Traffic | None, total_ms: float
    ) -> Report:
        encoded_now = any(stats.encoded_now for stats in question.upload_stats)
        report = build_report(
            question,
            done,
            feature_codec=self.encoder.encoder.feature_codec,
            traffic=spent(before, self.traffic()),
            connect_ms=self._connection.connect_ms,
            load_ms=self.encoder.load_ms if encoded_now and not self._load_reported else 0.0,
            total_ms=total_ms,
        )
        if self._choice is not None and (seen := measured(question, report)) is not None:
            self._choice.learn(report.mode, seen, link)
        self._load_reported = self._load_reported or encoded_now
        self._connection.connect_ms = 0.0  # the next question did not wait for it
        return report


def _late(deadline: Deadline) -> DeadlineError:
    return DeadlineError(
        f"no answer within {deadline.timeout_s or 0:g} s; give it more time (--timeout) or fewer tokens (--max-tokens)"
    )


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
