"""One question: its checks, its wait for pictures, its answer.

Promises one Done or one Error for every accepted question, and that the engine stops working on a question
that is cancelled, runs out of time, or whose stream is closed. Leaves the order of requests in a stream to `session`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial

from edge_server.assemble import Assembled, PictureRows
from edge_server.backend import Backend
from edge_server.conversations import Conversations
from edge_server.engine.base import Finish, Generation, Prompt
from edge_server.engine.sampling import SamplingParams
from edge_server.memory_errors import memory_limit_error
from edge_server.observer import EndedQuestion
from edge_server.outbox import Outbox
from edge_server.pacore.question import FINISH, SampledQuestion, loop_time
from edge_server.pacore.rounds import Rounds
from edge_server.picture_cache import HeldPicture
from edge_server.read_ahead import reading_ahead
from edge_server.reasoning import Delta, ReasoningParser
from edge_server.runtime import Runtime
from edge_server.stop_text import StopText
from edge_server.thinking_budget import AnswerTokens
from tofc.errors import CallError, DeadlineError, InternalError
from tofc.model.prompt import Turn
from tofc.rpc.errors import to_message
from tofc.rpc.implied import UINT32_MAX
from tofc.v1 import tofc_pb2 as pb

log = logging.getLogger(__name__)

ANSWER_SHARE = 8  # in a conversation, and beside thinking, 1/8 of the model's positions is reserved for the answer


@dataclass(kw_only=True, eq=False)
class QuestionJob:
    """A question that was accepted. Whoever accepted it holds its pictures until `task` is done."""

    number: int
    turns: list[Turn]
    sampling: SamplingParams
    rounds: Rounds | None = None  # of samples before the answer; with it `sample_sampling` is set
    sample_sampling: SamplingParams | None = None
    thinking: bool = False  # whether to send the model's thinking too
    thinking_budget: int | None = None  # tokens; None: `sampling.max_tokens` counts them too
    limited: bool = False  # the client has set `sampling.max_tokens`: else they are the most that the server allows
    stop: tuple[str, ...] = ()  # texts before which the answer ends
    pictures: list[HeldPicture]
    evicted: list[int]  # refs of the pictures that the client must send again
    deadline_ms: int
    conversations: Conversations  # where the question is kept once it is answered
    client: str = ""  # whose it is: places of the engine are shared among clients, see also `Prompt`
    traceparent: str = ""
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    _running: bool = False
    _arrived: float = field(default_factory=time.perf_counter)
    _visual_tokens: int = 0
    _prompt_tokens: int = 0
    _parser: ReasoningParser | None = None
    _answer: str = ""  # the text sent so far, without thinking
    _views_ms: float = 0.0
    _place_ms: float = 0.0  # spent waiting for a place of the engine
    _first_token_ms: float = 0.0
    _tokens: AnswerTokens | None = None
    _sampled: SampledQuestion | None = None

    def cancel(self) -> None:
        """Stop the answer at its next step; harmless when repeated."""
        if not self.cancelled:
            self.cancelled = True
            if self._running and self.task is not None:
                self.task.cancel()

    async def run(self, runtime: Runtime, outbox: Outbox, session: str) -> None:
        """Send tokens, then Done or Error. Raises only CancelledError, when the session ends."""
        outcome, failure, began = "disconnected", None, loop_time()
        self._running = True
        try:
            try:
                if self.cancelled:  # before its first step
                    reason = pb.FINISH_REASON_CANCELLED
                else:
                    async with asyncio.timeout(self.deadline_ms / 1e3 if self.deadline_ms else None):
                        reason = FINISH[await self._generate(runtime, outbox, session, began)]
                    self.conversations.add(self.number, self.turns, self._answer)
            except asyncio.CancelledError:
                me = asyncio.current_task()
                if not self.cancelled or me is None or me.uncancel():
                    raise  # the session ends, this is not the client's Cancel
                reason = pb.FINISH_REASON_CANCELLED
            except TimeoutError:
                raise DeadlineError(
                    f"the answer was not complete within {self.deadline_ms} ms ({self._new_tokens} tokens were "
                    "generated); give it more time or ask for fewer tokens"
                ) from None
            finally:
                self._running = False  # from here on a Cancel must not interrupt the sending of Done or Error
            await outbox.send(done=self._done(reason))
            outcome = pb.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()
        except CallError as error:
            outcome, failure = "error", runtime.admission.advise(error)
            await self._fail(failure, outbox)
        except Exception as error:
            sent: CallError | None = memory_limit_error(error, f"question {self.number} of {session}")
            if sent is None:  # a defect
                log.exception("%s question %d failed", session, self.number)
                sent = InternalError()
            outcome, failure = "error", runtime.admission.advise(sent)
            await self._fail(failure, outbox)
        finally:
            self._note_end(runtime, session, outcome, failure)

    def _note_end(self, runtime: Runtime, session: str, outcome: str, failure: CallError | None) -> None:
        """Tell the observer and the log how the question ended."""
        engine, usage = self._measured, self._usage()
        distinct = {id(picture): picture for picture in self.pictures}.values()
        ended = EndedQuestion(
            outcome=outcome,
            reason=failure.reason if failure is not None else outcome,
            prompt_tokens=usage.prompt_tokens,
            visual_tokens=usage.visual_tokens,
            new_tokens=usage.new_tokens,
            thinking_tokens=usage.thinking_tokens,
            samples=usage.samples,
            answer_tokens=self._answer_tokens,
            views_s=self._views_ms / 1e3,
            queue_s=(self._place_ms + (engine.wait_ms if engine else 0.0)) / 1e3,
            prefill_s=engine.prefill_ms / 1e3 if engine else 0.0,
            first_token_s=self._first_token_ms / 1e3,
            total_s=self._elapsed_ms() / 1e3,
            arrived_s=self._arrived,
            decodes_s=tuple(one.decoded_s for one in distinct if one.decoded_s[1] > self._arrived),
            traceparent=self.traceparent,
        )
        runtime.observer.question(ended)
        if failure is not None:
            runtime.observer.error("question", failure)
        log.info(
            "%s question %d: %d pictures, %d prompt tokens (%d visual), %d new tokens (%d thinking), %.0f ms, %s",
            *(session, self.number, len(self.pictures), ended.prompt_tokens, ended.visual_tokens),
            *(ended.new_tokens, ended.thinking_tokens, ended.total_s * 1e3, ended.reason),
            extra={"session": session, "question": self.number, **ended.fields},
        )

    async def _generate(self, runtime: Runtime, outbox: Outbox, session: str, began: float) -> Finish:
        backend = runtime.backend
        for ref in self.evicted:
            await outbox.send(need_picture=pb.NeedPicture(request=self.number, ref=ref))
        client = self.client or session
        async with reading_ahead(runtime, client, self.pictures, partial(self._beginning, backend, client)):
            await self._wait_for_views(runtime.picture_timeout_s)
        started = time.perf_counter()
        async with runtime.admission.place(client) as release:
            self._place_ms = (time.perf_counter() - started) * 1e3
            assembled = await self._assemble(runtime, client, self.turns)  # not before: rows take memory
            sampling = self.sampling
            if self.rounds is not None:
                sampled = self._sampling_of(runtime, outbox, client, self.rounds, began)
                following = await sampled.run(assembled)
                if following is None:
                    release()  # as below
                    return await self._send_votes(sampled, outbox)
                assembled, sampling = following, sampled.after(self.sampling)
                following = None
            parser = self._begin(backend, assembled)
            self._tokens = tokens = AnswerTokens(
                backend.engine,
                sampling,
                parser,
                budget=self.thinking_budget,
                reserved=sampling.max_tokens if self.limited else self._share(backend.engine.max_positions),
                think_tokens=backend.think_tokens,
                extend=partial(self._extend, runtime),
                submitted=lambda one: one.on_finished(release),  # a client that reads slowly must not hold the slot
            )
            stop = StopText(self.stop)
            async with aclosing(tokens):
                await tokens.start(assembled.prompt)
                del assembled
                if self._sampled is not None:
                    await self._sampled.send_rollouts()
                async for token in tokens:
                    self._first_token_ms = self._first_token_ms or self._elapsed_ms()
                    await self._send(stop.push(parser.push(token)), outbox)
                    if stop.found:
                        return Finish.STOP
        await self._send(stop.finish(parser.finish()), outbox)
        if stop.found:
            return Finish.STOP
        if tokens.finish is None:
            raise InternalError("the engine ended the answer without saying why; ask again")
        return tokens.finish

    async def _extend(self, runtime: Runtime, prompt: Prompt, ids: Sequence[int]) -> Prompt:
        """Return the prompt continued by token ids."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(runtime.pool, runtime.backend.assembler.continued, prompt, ids)

    def _beginning(self, backend: Backend, client: str, rows: Sequence[PictureRows]) -> Prompt | None:
        """Return the prompt up to the first missing view."""
        most = self._max_prompt(backend.engine.max_positions)
        prompt = backend.assembler.beginning(self.turns, rows, most)
        return None if prompt is None else self._owned(prompt, client)

    def _whole(self, backend: Backend, client: str, turns: Sequence[Turn], rows: Sequence[PictureRows]) -> Assembled:
        assembled = backend.assembler.prompt(turns, rows, self._max_prompt(backend.engine.max_positions))
        return replace(assembled, prompt=self._owned(assembled.prompt, client))

    def _owned(self, prompt: Prompt, client: str) -> Prompt:
        """Return the prompt with its client and its pictures, by which an engine finds what it kept of earlier ones."""
        return replace(prompt, client=client, pictures=" ".join(one.picture_id.hex() for one in self.pictures))

    def _sampling_of(
        self, runtime: Runtime, outbox: Outbox, client: str, rounds: Rounds, began: float
    ) -> SampledQuestion:
        self._sampled = SampledQuestion(
            number=self.number,
            turns=self.turns,
            rounds=rounds,
            sampling=self.sample_sampling or self.sampling,
            runtime=runtime,
            outbox=outbox,
            client=client,
            assemble=partial(self._assemble, runtime, client),
            began=began,
            deadline_s=self.deadline_ms / 1e3,
        )
        return self._sampled

    async def _send_votes(self, sampled: SampledQuestion, outbox: Outbox) -> Finish:
        """Send the answer that has most votes."""
        self._first_token_ms = self._elapsed_ms()
        await sampled.send_rollouts()
        await self._send(StopText(self.stop).finish([Delta(text=sampled.votes[0].text)]), outbox)
        return Finish.STOP

    async def _assemble(self, runtime: Runtime, client: str, turns: Sequence[Turn]) -> Assembled:
        backend = runtime.backend
        rows = [PictureRows(rows=one.rows, columns=one.columns, views=one.views) for one in self.pictures]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(runtime.pool, self._whole, backend, client, turns, rows)

    def _begin(self, backend: Backend, assembled: Assembled) -> ReasoningParser:
        """Return the parser of the answer to this prompt."""
        self._prompt_tokens, self._visual_tokens = len(assembled.prompt.embeds), assembled.visual_tokens
        think_tokens = backend.think_tokens
        inside = think_tokens is not None and think_tokens.left_open(assembled.ids, backend.decode)
        self._parser = ReasoningParser(backend.decode, think_tokens, inside=inside)
        return self._parser

    def _max_prompt(self, positions: int) -> int:
        """Return how many tokens the prompt may have, out of the model's `positions`.

        A conversation, and a question with samples, leave a share of them for the answer, others at least one.
        """
        long = len(self.turns) > 1 or self.rounds is not None
        return positions - (self._share(positions) if long else 1)

    def _share(self, positions: int) -> int:
        """Return how many of the model's `positions` are kept for an answer; at least 1."""
        return max(min(self.sampling.max_tokens, positions // ANSWER_SHARE), 1)

    async def _wait_for_views(self, timeout_s: float) -> None:
        started = time.perf_counter()
        for picture in self.pictures:
            while not picture.complete:
                try:
                    async with asyncio.timeout(timeout_s):
                        await picture.wait()
                except TimeoutError:
                    if picture.pending_decodes:  # everything has arrived: the server itself is slow
                        continue
                    raise DeadlineError(
                        f"{picture.missing} of {picture.count} views of picture {picture.picture_id.hex()} did not "
                        f"arrive within {timeout_s:g} s; send them before or right after the question",
                        reason="VIEWS_MISSING",
                    ) from None
        self._views_ms = (time.perf_counter() - started) * 1e3

    async def _send(self, deltas: list[Delta], outbox: Outbox) -> None:
        for delta in deltas:
            if delta.restart:
                self._answer = ""
            if not delta.thinking:
                self._answer += delta.text
            if self.thinking or not delta.thinking:
                token = pb.Token(request=self.number, text=delta.text, thinking=delta.thinking, restart=delta.restart)
                await outbox.send(token=token)

    @property
    def _new_tokens(self) -> int:
        sampled = self._sampled.sums.new_tokens if self._sampled else 0
        return sampled + self._answer_tokens

    @property
    def _answer_tokens(self) -> int:
        return self._parser.tokens if self._parser else 0

    @property
    def _measured(self) -> Generation | None:
        """The answer whose times are reported: of one that votes decided, the first sample."""
        of_answer = self._tokens.first if self._tokens else None
        return of_answer or (self._sampled.first if self._sampled else None)

    def _usage(self) -> pb.Usage:
        usage = pb.Usage(
            prompt_tokens=self._prompt_tokens,
            visual_tokens=self._visual_tokens,
            new_tokens=self._new_tokens,
            thinking_tokens=self._parser.thinking_tokens if self._parser else 0,
        )
        if self._sampled is not None:
            sums = self._sampled.sums
            usage.prompt_tokens += sums.prompt_tokens
            usage.visual_tokens += sums.visual_tokens
            usage.thinking_tokens += sums.thinking_tokens
            usage.prompts = sums.prompts + (self._parser is not None)
            usage.samples, usage.samples_used = sums.samples, sums.used
        return usage

    async def _fail(self, error: CallError, outbox: Outbox) -> None:
        await outbox.send(error=to_message(error, self.number))

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self._arrived) * 1e3

    def _done(self, reason: pb.FinishReason) -> pb.Done:
        engine = self._measured
        distinct = {id(picture): picture for picture in self.pictures}.values()
        return pb.Done(
            request=self.number,
            finish_reason=reason,
            usage=self._usage(),
            unanswered=self._parser is not None and self._parser.unanswered,
            votes=[pb.Vote(text=one.text, count=one.count) for one in self._sampled.votes] if self._sampled else (),
            timing=pb.Timing(
                decode_us=_us(sum(picture.decode_ms for picture in distinct)),
                wait_us=_us(self._views_ms + self._place_ms + (engine.wait_ms if engine else 0.0)),
                prefill_us=_us(engine.prefill_ms if engine else 0.0),
                first_token_us=_us(self._first_token_ms),
                total_us=_us(self._elapsed_ms()),
            ),
        )


def _us(ms: float) -> int:
    """Return whole microseconds, at most what the protocol's field can hold."""
    return min(round(ms * 1e3), UINT32_MAX)
