"""One question: its checks, its wait for pictures, its answer.

Promises one Done or one Error for every accepted question, and that an engine never goes on for a
question that was cancelled, ran out of time, or whose stream closed. Leaves the order of requests in a
stream to `session`.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Literal

from edge_server.admission import Admission
from edge_server.assemble import Assembler, PictureRows
from edge_server.conversations import Conversations
from edge_server.engine.base import Engine, Finish, Generation, Sampling
from edge_server.images import Darkroom
from edge_server.outbox import Outbox
from edge_server.pictures import Picture
from edge_server.settings import MOST_TURNS, SessionLimits
from edge_server.shortage import shortage
from edge_server.text import Decode
from edge_server.thinking import Marks, Part, Speech
from shared.model.generation import GREEDY, Defaults
from shared.model.prompt import Turn
from shared.rpc.errors import DeadlineError, InternalError, InvalidRequestError, TofcError, to_message
from shared.rpc.tofc.v1 import tofc_pb2

log = logging.getLogger(__name__)

ROLES: dict[int, Literal["system", "user", "assistant"]] = {
    tofc_pb2.ROLE_USER: "user",
    tofc_pb2.ROLE_ASSISTANT: "assistant",
    tofc_pb2.ROLE_SYSTEM: "system",
}
ROOM = 8  # of what the model reads, this share is kept for an answer in a conversation
FINISH = {Finish.STOP: tofc_pb2.FINISH_REASON_STOP, Finish.LENGTH: tofc_pb2.FINISH_REASON_LENGTH}


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """What answers are made with; one for the whole server."""

    assembler: Assembler
    engine: Engine
    admission: Admission
    decode: Decode
    pool: Executor
    picture_timeout: float  # seconds
    marks: Marks | None = None  # None: the model does not think aloud
    defaults: Defaults = GREEDY
    darkroom: Darkroom | None = None  # None: pictures come as packets only


def turns_of(ask: tofc_pb2.Ask, earlier: Sequence[Turn], limits: SessionLimits) -> list[Turn]:
    """The turns of a question after `earlier` ones. Raises InvalidRequestError for an order or size not allowed."""
    count = len(earlier) + len(ask.history) + 1
    if count > MOST_TURNS:
        raise InvalidRequestError(
            f"the question has {count} turns, allowed are {MOST_TURNS}; drop earlier ones",
            reason="QUESTION_TOO_LONG",
        )
    for position, turn in enumerate(ask.history, len(earlier)):
        if turn.role not in ROLES or (turn.role == tofc_pb2.ROLE_SYSTEM and position):
            raise InvalidRequestError(
                f"turn {position} has role {turn.role}; allowed are user (1), assistant (2), and system (3) for the "
                "first turn only",
                reason="TURNS_INVALID",
            )
    history = [Turn(role=ROLES[turn.role], text=turn.text) for turn in ask.history]
    turns = [*earlier, *history, Turn(role="user", text=ask.question)]
    size = sum(len(turn.text.encode()) for turn in turns)
    if size > limits.question_bytes:
        raise InvalidRequestError(
            f"the question is {size} bytes, allowed are {limits.question_bytes}; drop earlier turns or shorten it",
            reason="QUESTION_TOO_LONG",
        )
    return turns


def sampling_of(ask: tofc_pb2.Ask, limits: SessionLimits, defaults: Defaults) -> Sampling:
    """How to choose tokens; what is unset is the checkpoint's default. Raises InvalidRequestError."""
    wanted = ask.sampling
    if wanted.max_tokens > limits.new_tokens:
        raise InvalidRequestError(
            f"max_tokens is {wanted.max_tokens}, allowed are {limits.new_tokens}; ask for fewer, or start the server "
            "with a larger --max-new-tokens",
            reason="TOO_MANY_TOKENS",
        )
    return Sampling(
        max_tokens=wanted.max_tokens or min(defaults.max_tokens or limits.new_tokens, limits.new_tokens),
        temperature=wanted.temperature if wanted.HasField("temperature") else defaults.temperature,
        top_p=wanted.top_p if wanted.HasField("top_p") else defaults.top_p,
        top_k=wanted.top_k if wanted.HasField("top_k") else defaults.top_k,
        seed=wanted.seed,
    )


@dataclass(kw_only=True, eq=False)
class Question:
    """A question that was accepted. Whoever accepted it holds its pictures until `task` is done."""

    number: int
    turns: list[Turn]
    sampling: Sampling
    thinking: bool = False  # whether the client wants it
    pictures: list[Picture]
    gone: list[int]  # refs of those that have to be sent again
    deadline_ms: int
    conversations: Conversations  # that it joins when it is answered
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    _running: bool = False
    _arrived: float = field(default_factory=time.perf_counter)
    _visual: int = 0
    _prompt: int = 0
    _speech: Speech | None = None
    _answer: str = ""  # as far as it is said
    _views_ms: float = 0.0
    _first_ms: float = 0.0
    _generation: Generation | None = None

    def cancel(self) -> None:
        """Stops the answer at its next step; harmless when repeated."""
        if not self.cancelled:
            self.cancelled = True
            if self._running and self.task is not None:
                self.task.cancel()

    async def answer(self, shop: Workshop, outbox: Outbox, session: str) -> None:
        """Sends tokens, then Done or Error. Only the end of the session (CancelledError) comes out of it."""
        outcome = "the session ended"
        self._running = True
        try:
            try:
                if self.cancelled:  # before its first step
                    reason = tofc_pb2.FINISH_REASON_CANCELLED
                else:
                    async with asyncio.timeout(self.deadline_ms / 1e3 if self.deadline_ms else None):
                        reason = FINISH[await self._generate(shop, outbox, session)]
                    self.conversations.add(self.number, self.turns, self._answer)
            except asyncio.CancelledError:
                me = asyncio.current_task()
                if not self.cancelled or me is None or me.uncancel():
                    raise  # the session, not the client's Cancel, ends this
                reason = tofc_pb2.FINISH_REASON_CANCELLED
            except TimeoutError:
                raise DeadlineError(
                    f"the answer was not complete within {self.deadline_ms} ms ({self._new} tokens were made); "
                    "give it more time or ask for fewer tokens"
                ) from None
            finally:
                self._running = False  # decided: a Cancel must not drop the Done or Error that waits for room
            await outbox.send(done=self._done(reason))
            outcome = tofc_pb2.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()
        except TofcError as error:
            await self._fail(error, outbox)
            outcome = error.reason
        except Exception as error:
            told: TofcError | None = shortage(error, f"question {self.number} of {session}")
            if told is None:
                log.exception("%s question %d failed", session, self.number)
                told = InternalError()
            await self._fail(told, outbox)
            outcome = told.reason
        finally:
            log.info(
                "%s question %d: %d pictures, %d prompt tokens (%d visual), %d new tokens (%d thinking), %.0f ms, %s",
                *(session, self.number, len(self.pictures), self._prompt, self._visual, self._new, self._thought),
                *(self._elapsed(), outcome),
            )

    async def _generate(self, shop: Workshop, outbox: Outbox, session: str) -> Finish:
        for ref in self.gone:
            await outbox.send(need_picture=tofc_pb2.NeedPicture(request=self.number, ref=ref))
        await self._views(shop.picture_timeout)
        rows = [PictureRows(rows=one.rows, columns=one.columns, views=one.views) for one in self.pictures]
        loop = asyncio.get_running_loop()
        assembled = await loop.run_in_executor(
            shop.pool, shop.assembler.prompt, self.turns, rows, self._most(shop.engine.max_positions)
        )
        self._prompt, self._visual = len(assembled.prompt.embeds), assembled.visual_tokens
        inside = shop.marks is not None and shop.marks.left_open(assembled.ids, shop.decode)
        self._speech = speech = Speech(shop.decode, shop.marks, inside=inside)
        async with shop.admission.place(session) as leave:
            self._generation = generation = shop.engine.submit(assembled.prompt, self.sampling)
            generation.when_over(leave)  # a client that does not read holds no place
            try:
                async for token in generation:
                    self._first_ms = self._first_ms or self._elapsed()
                    await self._say(speech.push(token), outbox)
            finally:
                await generation.aclose()
        await self._say(speech.finish(), outbox)
        if generation.finish is None:
            raise InternalError("the engine ended the answer without saying why; ask again")
        return generation.finish

    def _most(self, positions: int) -> int:
        """Tokens that the prompt may have. Earlier turns make way for an answer that would be cut short beside them."""
        room = min(self.sampling.max_tokens, positions // ROOM) if len(self.turns) > 1 else 1
        return positions - max(room, 1)

    async def _views(self, timeout: float) -> None:
        began = time.perf_counter()
        for picture in self.pictures:
            while not picture.complete:
                try:
                    async with asyncio.timeout(timeout):
                        await picture.wait()
                except TimeoutError:
                    if picture.developing:  # all of it is here: it is this server that takes its time
                        continue
                    raise DeadlineError(
                        f"{picture.missing} of {picture.count} views of picture {picture.picture_id.hex()} did not "
                        f"arrive within {timeout:g} s; send them before or right after the question",
                        reason="VIEWS_MISSING",
                    ) from None
        self._views_ms = (time.perf_counter() - began) * 1e3

    async def _say(self, parts: list[Part], outbox: Outbox) -> None:
        for part in parts:
            if part.anew:
                self._answer = ""
            if not part.thinking:
                self._answer += part.text
            if self.thinking or not part.thinking:
                token = tofc_pb2.Token(request=self.number, text=part.text, thinking=part.thinking, anew=part.anew)
                await outbox.send(token=token)

    @property
    def _new(self) -> int:
        return self._speech.tokens if self._speech else 0

    @property
    def _thought(self) -> int:
        return self._speech.thinking_tokens if self._speech else 0

    async def _fail(self, error: TofcError, outbox: Outbox) -> None:
        await outbox.send(error=to_message(error, self.number))

    def _elapsed(self) -> float:
        return (time.perf_counter() - self._arrived) * 1e3

    def _done(self, reason: tofc_pb2.FinishReason) -> tofc_pb2.Done:
        engine = self._generation
        distinct = {id(picture): picture for picture in self.pictures}.values()
        return tofc_pb2.Done(
            request=self.number,
            finish_reason=reason,
            usage=tofc_pb2.Usage(
                prompt_tokens=self._prompt,
                visual_tokens=self._visual,
                new_tokens=self._new,
                thinking_tokens=self._thought,
            ),
            unanswered=self._speech is not None and self._speech.unanswered,
            timing=tofc_pb2.Timing(
                decode_ms=sum(picture.decode_ms for picture in distinct),
                wait_ms=self._views_ms + (engine.wait_ms if engine else 0.0),
                prefill_ms=engine.prefill_ms if engine else 0.0,
                first_token_ms=self._first_ms,
                total_ms=self._elapsed(),
            ),
        )
