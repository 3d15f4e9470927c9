"""The engine in this process: one worker thread that runs transformers' Qwen3 for all answers, a step at a time.

    submit_samples ─→ waiting ─ in turns among clients ─→ running ─ step ─→ sampler of each ─→ Generation
                                                             └ last tokens, and prompt rows that are still unread

Promises that an answer depends on its prompt and its sampling only, never on what else runs. Where a packed forward has
the same bits alone and in company (`probe`), a step computes all answers in one; elsewhere one after another, because
rounding would now and then turn a close decision into another token. Samples share their prompt's keys and values, a
client's next prompt starts from those of its earlier ones (`prefix_cache`), and all of them together stay within
`cache_bytes`. Leaves large models and many users to other engines, and text to `detokenizer`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from edge_server.engine.accelerator_loss import accelerator_lost
from edge_server.engine.base import (
    Engine,
    EngineLoad,
    Finish,
    Generation,
    HealthCallback,
    Prompt,
    answer_limit,
    sample_params,
)
from edge_server.engine.kv_cache import KeyValueCache
from edge_server.engine.packed_decoder import STEP_ROWS, PackedDecoder, Segment
from edge_server.engine.prefix_cache import PrefixCache, block_keys
from edge_server.engine.refusals import busy, failed, stopping
from edge_server.engine.sampling import Sampler, SamplingParams
from edge_server.engine.schedule import in_turns, share_rows
from edge_server.engine.static_decoder import StaticDecoder
from edge_server.memory_errors import memory_limit_error
from tofc.errors import ResourceError, UnavailableError
from tofc.out_of_memory import out_of_memory

log = logging.getLogger(__name__)

GIB = 1024**3


@dataclass(eq=False, kw_only=True)
class _Question:
    """A prompt, which is read once for all of its samples."""

    prompt: Prompt
    length: int  # rows of the prompt
    unfinished: int  # samples
    unstarted: int  # samples that wait
    keys: Sequence[bytes] = ()  # of its blocks, see `prefix_cache`
    rows: Tensor | None = None  # [T, H] while it is read
    cache: KeyValueCache | None = None  # from its first sample's start on
    logits: Tensor | None = None  # [V] after its last row, for samples that start later

    @property
    def unread(self) -> int:
        """Rows that are still to be read."""
        return self.length - self.cache.length if self.cache is not None and self.rows is not None else 0


@dataclass(eq=False, kw_only=True)
class _Answer:
    """One sample of a question."""

    question: _Question
    generation: Generation
    sampler: Sampler
    limit: int  # tokens that may be generated
    shares: bool  # whether its question has several samples
    token: int = -1  # the last one generated
    cache: KeyValueCache | None = None  # from its first token on
    tokens: int = 0  # generated so far

    @property
    def client(self) -> str:
        return self.question.prompt.client

    @property
    def active(self) -> bool:
        """Whether somebody waits for it and it has not ended."""
        return not self.generation.cancelled and self.generation.finish is None


class _Work(NamedTuple):
    """Rows that a step computes, and whose they are: a prompt's, or the last token of an answer."""

    owner: _Question | _Answer
    segment: Segment


class TransformersEngine(Engine):
    """Runs a `Qwen3ForCausalLM`.

    `stop_tokens` end an answer; at most `parallel` answers run and `queue` more wait. `packed` must be what
    `probe.is_exact` says. With `static`, answers take turns and their tokens have fixed shapes, on a GPU as a graph
    (`static_decoder`). An answer starts when its prompt and all tokens it may get fit into `cache_bytes` beside
    those of the running ones; a prompt that would not fit alone is refused.
    """

    name = "transformers"
    read_ahead_rows = 16
    recovers = False

    def __init__(
        self,
        model: Qwen3ForCausalLM,
        stop_tokens: Collection[int],
        *,
        parallel: int = 32,
        queue: int = 32,
        cache_bytes: int = 4 * GIB,
        packed: bool = False,
        static: bool = False,
    ) -> None:
        self.steps = 0  # computed so far
        self._decoder = StaticDecoder(model) if static else PackedDecoder(model, packed=packed)
        # What would not fit into memory alone is refused when it is submitted.
        self.max_positions = min(self._decoder.max_positions, cache_bytes // self._decoder.shape.row_bytes)
        if self.max_positions < 2:
            raise ResourceError(
                f"keys and values of one position take {self._decoder.shape.row_bytes} bytes, all together may take "
                f"{cache_bytes}; raise --engine-cache-mib"
            )
        self._stop_tokens = frozenset(stop_tokens)
        self._parallel = parallel
        self._queue = queue
        self._cache_bytes = cache_bytes
        self._cache_bytes_used = 0
        self._kept = PrefixCache(self._decoder.block)
        self._starts = 0
        self._last_start: dict[str, int] = {}  # of each client that has answers: which start it was
        self._waiting: deque[_Answer] = deque()
        self._running: list[_Answer] = []
        self._stopping = False
        self._dead: UnavailableError | None = None
        self._on_health: list[tuple[asyncio.AbstractEventLoop, HealthCallback]] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="tofc-engine", daemon=True)
        self._thread.start()

    def submit_samples(self, prompt: Prompt, sampling: SamplingParams, samples: int) -> list[Generation]:
        limit = answer_limit(prompt, sampling, self.max_positions)
        question = _Question(prompt=prompt, length=len(prompt.embeds), unfinished=samples, unstarted=samples)
        answers = [
            _Answer(
                question=question,
                generation=Generation(on_close=self._wake),
                sampler=Sampler(one),
                limit=limit,
                shares=samples > 1,
            )
            for one in sample_params(sampling, samples)
        ]
        with self._changed:
            if self._dead is not None:
                raise self._dead
            if self._stopping:
                raise stopping()
            taken = _count_active([*self._running, *self._waiting])
            if taken + samples > self._queue + self._parallel:
                raise busy(taken)
            self._waiting.extend(answers)
            self._changed.notify()
        return [answer.generation for answer in answers]

    def load(self) -> EngineLoad:
        with self._changed:
            return EngineLoad(
                running=_count_active(self._running),
                running_allowed=self._parallel,
                waiting=_count_active(self._waiting),
                waiting_allowed=self._queue,
                cache_bytes=self._cache_bytes_used,
                cache_bytes_allowed=self._cache_bytes,
            )

    @property
    def full_answers(self) -> int:
        """How many answers that use every position fit into memory together: at least one."""
        return self._cache_bytes // (self.max_positions * self._decoder.shape.row_bytes)

    def watch(self, on_health: HealthCallback) -> None:
        self._on_health.append((asyncio.get_running_loop(), on_health))

    async def stop(self) -> None:
        """End the worker after its current step; unfinished answers fail with UnavailableError."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    # the worker thread

    def _work(self) -> None:
        error = stopping()
        try:
            while self._wait_for_work():
                self._step()
        except Exception:  # a lost GPU, or a defect of the engine itself: a failed step ends its own answers only
            log.exception("the engine's thread failed")
            error = failed()
        with self._changed:
            if not self._stopping:
                self._dead = error
            for answer in [*self._running, *self._waiting]:
                answer.generation.fail(error)
            self._running.clear()
            self._waiting.clear()
        for loop, tell in self._on_health if self._dead is not None else ():
            loop.call_soon_threadsafe(tell, self._dead)

    def _wait_for_work(self) -> bool:
        """Remove cancelled answers and start waiting ones; block if there is nothing to do. False: stop.

        Rows are hashed and copied before and after `_changed` is held, because the event loop takes it too.
        """
        while True:
            self._remove_cancelled()
            with self._changed:
                if self._stopping:
                    return False
                self._start_waiting()
                self._cache_bytes_used = self._count_bytes()
                if self._running:
                    return True
                self._changed.wait()

    def _remove_cancelled(self) -> None:
        with self._changed:
            cancelled = [one for one in (*self._running, *self._waiting) if one.generation.cancelled]
            self._waiting = deque(one for one in self._waiting if one not in cancelled)
        for answer in cancelled:
            self._remove(answer)

    def _start_waiting(self) -> None:
        if not self._waiting:
            return
        running = set(self._running)
        present = {one.client for one in [*self._running, *self._waiting]}
        self._last_start = {client: when for client, when in self._last_start.items() if client in present}
        for answer in in_turns([*self._running, *self._waiting], lambda one: one.client, self._last_start):
            if answer in running:
                continue
            if len(self._running) >= self._parallel:
                return
            if not self._make_room(answer):
                if self._running:
                    return
                continue  # a sample whose prompt is in memory goes first: nothing else would free it
            self._waiting.remove(answer)
            self._running.append(answer)
            self._starts += 1
            self._last_start[answer.client] = self._starts
            answer.question.unstarted -= 1
            answer.generation.begin()

    def _make_room(self, answer: _Answer) -> bool:
        """Drop kept rows until everything that this answer and the others may need fits; false if it cannot."""
        others = self._questions_in_memory() - {answer.question}
        rows = sum(one.length for one in (*others, answer.question)) + sum(
            one.limit for one in (*self._running, answer)
        )
        free = self._cache_bytes - rows * self._decoder.shape.row_bytes
        if free < 0:
            return False
        self._kept.shrink(free)
        return True

    def _questions_in_memory(self) -> set[_Question]:
        """Return those that run, and those whose other samples wait after one has ended."""
        waiting = {one.question for one in self._waiting if one.question.cache is not None}
        return waiting | {one.question for one in self._running}

    def _begin(self, answer: _Answer) -> None:
        """Make what the prompt of an answer is read with."""
        question = answer.question
        question.keys = block_keys(question.prompt, self._decoder.block)
        question.cache = self._begin_with_kept(question, question.length + (0 if answer.shares else answer.limit))
        question.rows = torch.from_numpy(question.prompt.embeds)

    def _begin_with_kept(self, question: _Question, rows: int) -> KeyValueCache:
        """Return a cache for `rows` rows with those of a prompt that an earlier one left, but never its last one."""
        found = self._kept.find(question.keys, question.length - 1)
        if found is not None:
            cache, copied = found
            try:
                return cache.copy(copied, rows)
            except Exception as error:
                if not out_of_memory(error):
                    raise
        return KeyValueCache(self._decoder.shape, rows)

    def _step(self) -> None:
        """Compute one step for all running answers, and hand over their tokens.

        A function of its own, so that no local variable keeps a question and its cache while the worker waits.
        """
        for answer in self._running:
            if answer.question.cache is None:
                self._begin(answer)
        for answer in [one for one in self._running if one.cache is None and one.question.logits is not None]:
            assert answer.question.logits is not None
            self._first_token(answer, answer.question.logits)  # its prompt was read for another sample
            if not answer.question.unstarted:
                answer.question.logits = None
        plan = self._plan()
        self.steps += bool(plan)
        for batch in [plan] if self._decoder.packed else [[one] for one in plan]:
            if self._stopping:
                return
            for (owner, segment), outcome in zip(batch, self._run(batch), strict=True):
                if isinstance(outcome, Exception):
                    self._fail(owner, outcome)
                elif isinstance(owner, _Answer):
                    self._take(owner, outcome)
                elif segment.cache.length == owner.length:
                    self._has_read(owner, outcome)

    def _plan(self) -> list[_Work]:
        """Return the last token of every answer that has one, and the prompt rows whose turn it is."""
        plan = []
        for answer in self._running:
            if answer.cache is not None:
                plan.append(_Work(answer, Segment(cache=answer.cache, rows=answer.token)))
        questions = in_turns({one.question: None for one in self._running}, lambda one: one.prompt.client)
        unread = [one for one in questions if one.unread]
        shares = share_rows([one.unread for one in unread], budget=STEP_ROWS, block=self._decoder.block)
        for question, count in zip(unread, shares, strict=True):
            if count:
                assert question.cache is not None and question.rows is not None
                begin = question.cache.length
                rows = question.rows[begin : begin + count]
                plan.append(_Work(question, Segment(cache=question.cache, rows=rows)))
        return plan

    def _run(self, batch: Sequence[_Work]) -> Sequence[Tensor | Exception]:
        """Run a batch; if that fails, each segment alone, so that only those fail whose fault it is."""
        segments = [one.segment for one in batch]
        try:
            return self._decoder.run(segments) if segments else ()
        except Exception as error:
            if accelerator_lost(error):
                raise  # it would fail every answer from now on: the engine ends
            if out_of_memory(error):
                self._kept.shrink(0)
        outcomes: list[Tensor | Exception] = []
        for segment in segments:
            try:
                outcomes += self._decoder.run([segment])
            except Exception as error:
                if accelerator_lost(error):
                    raise
                outcomes.append(error)
        return outcomes

    def _has_read(self, question: _Question, logits: Tensor) -> None:
        assert question.cache is not None
        question.rows = None
        question.logits = logits.clone() if question.unstarted else None  # alone, not with those of the whole step
        self._kept.add(question.keys, question.cache)
        for answer in [one for one in self._running if one.question is question]:
            self._first_token(answer, logits)

    def _first_token(self, answer: _Answer, logits: Tensor) -> None:
        question = answer.question
        assert question.cache is not None
        answer.cache = question.cache.fork(answer.limit) if answer.shares else question.cache
        answer.generation.prefilled()
        self._take(answer, logits)

    def _take(self, answer: _Answer, logits: Tensor) -> None:
        """Sample a token from logits [V]."""
        try:
            token = answer.sampler.sample(logits)
        except Exception as error:
            self._fail(answer, error)
            return
        finish: Finish | None = None
        if token in self._stop_tokens:
            finish = Finish.STOP
        else:
            answer.generation.put(token)
            answer.token = token
            answer.tokens += 1
            if answer.tokens == answer.limit:
                finish = Finish.LENGTH
        if finish is not None:
            answer.generation.end(finish)
            self._remove(answer)

    def _fail(self, owner: _Question | _Answer, error: Exception) -> None:
        limit = memory_limit_error(error, "another token of a question", reason="ENGINE_MEMORY")
        if limit is None:
            log.error("a step failed", exc_info=error)
        with self._changed:
            if isinstance(owner, _Question):  # its waiting samples would fail in the same way
                waiting = [one for one in self._waiting if one.question is owner]
                self._waiting = deque(one for one in self._waiting if one.question is not owner)
                failed = [*(one for one in self._running if one.question is owner), *waiting]
            else:
                failed = [owner]
        for answer in failed:
            answer.generation.fail(limit or error)
            self._remove(answer)

    def _remove(self, answer: _Answer) -> None:
        """Forget an answer that has ended, and its question with the last one."""
        if answer in self._running:
            self._running.remove(answer)
        answer.cache = None
        self._leave(answer.question)

    def _leave(self, question: _Question) -> None:
        question.unfinished -= 1
        if question.unfinished == 0 and question.cache is not None:
            self._kept.release(question.cache)
            question.cache = question.rows = question.logits = None

    def _count_bytes(self) -> int:
        caches = {one.cache for one in self._questions_in_memory()} | {one.cache for one in self._running}
        return sum(cache.nbytes for cache in caches if cache is not None) + self._kept.idle_bytes


def _count_active(answers: Iterable[_Answer]) -> int:
    """Count those that are neither cancelled nor ended; the others are removed before the next step."""
    return sum(answer.active for answer in answers)
