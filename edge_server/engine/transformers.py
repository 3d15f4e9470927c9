"""The engine in this process: Qwen3 of transformers, one worker thread, round robin over the running answers.

    submit ─→ waiting ─ schedule ─→ running ─ step each: prefill, then decode_one ─ sampler ─→ Generation

Promises that an answer depends on its prompt and its sampling only, never on what else runs: the running answers take
one step each in turn, instead of being computed as one batch. A batch would be faster on a GPU, but its matrix products
have other shapes and sum in another order, which now and then rounds a close decision to another token; the same
question would then get another answer on a busy server. Leaves higher throughput to other engines, and text to
`detokenizer`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, Qwen3ForCausalLM

from edge_server.engine.base import Engine, EngineLoad, Finish, Generation, HealthCallback, Prompt, sample_params
from edge_server.engine.qwen3 import CACHE
from edge_server.engine.sampling import Sampler, SamplingParams
from edge_server.memory_errors import memory_limit_error
from tofc.errors import LimitError, UnavailableError

log = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class _Request:
    generation: Generation
    prompt: Prompt | None  # None once it has been read
    sampler: Sampler
    tokens_left: int  # how many more may be generated
    token: int = -1  # the last one generated
    cache: Any = None


class TransformersEngine(Engine):
    """Runs a `Qwen3ForCausalLM`.

    `stop_tokens` end an answer; at most `parallel` requests hold a key-value cache, and `queue` more wait.
    """

    name = "transformers"
    recovers = False

    def __init__(
        self, model: Qwen3ForCausalLM, stop_tokens: Collection[int], *, parallel: int = 8, queue: int = 32
    ) -> None:
        self._model: Any = model  # Any: transformers leaves its calls untyped
        self._model.eval()
        self.max_positions = int(self._model.config.max_position_embeddings)
        self._stop_tokens = frozenset(stop_tokens)
        self._parallel = parallel
        self._queue = queue
        self._waiting: deque[_Request] = deque()
        self._running: list[_Request] = []
        self._stopping = False
        self._dead: UnavailableError | None = None
        self._on_health: list[tuple[asyncio.AbstractEventLoop, HealthCallback]] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="tofc-engine", daemon=True)
        self._thread.start()

    def submit_samples(self, prompt: Prompt, sampling: SamplingParams, samples: int) -> list[Generation]:
        tokens_left = min(sampling.max_tokens, self.max_positions - len(prompt.embeds))
        requests = [
            _Request(
                generation=Generation(on_close=self._wake), prompt=prompt, sampler=Sampler(one), tokens_left=tokens_left
            )
            for one in sample_params(sampling, samples)
        ]
        with self._changed:
            if self._dead is not None:
                raise self._dead
            if self._stopping:
                raise UnavailableError("the server is stopping; try again later", reason="STOPPING")
            taken = len(self._active([*self._running, *self._waiting]))
            if taken + samples > self._queue + self._parallel:
                raise LimitError(
                    f"{taken} questions are running or waiting, which is as many as this server takes; ask again in a "
                    "few seconds",
                    reason="ENGINE_BUSY",
                )
            self._waiting.extend(requests)
            self._changed.notify()
        return [request.generation for request in requests]

    def load(self) -> EngineLoad:
        with self._changed:
            return EngineLoad(
                running=len(self._active(self._running)),
                running_allowed=self._parallel,
                waiting=len(self._active(self._waiting)),
                waiting_allowed=self._queue,
            )

    def watch(self, on_health: HealthCallback) -> None:
        self._on_health.append((asyncio.get_running_loop(), on_health))

    @staticmethod
    def _active(requests: Iterable[_Request]) -> list[_Request]:
        """Return those that are neither cancelled nor ended; the others are removed before the next step."""
        return [one for one in requests if not one.generation.cancelled and one.generation.finish is None]

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
        error = UnavailableError("the server is stopping; try again later", reason="STOPPING")
        try:
            while self._wait_for_work():
                self._schedule()
        except Exception:  # a defect of the engine itself: a failed step ends its own answer only
            log.exception("the engine's thread failed")
            error = UnavailableError("the server's model has failed; try another server", reason="ENGINE_LOST")
        with self._changed:
            if not self._stopping:
                self._dead = error
            for request in [*self._running, *self._waiting]:
                request.generation.fail(error)
            self._running.clear()
            self._waiting.clear()
        for loop, tell in self._on_health if self._dead is not None else ():
            loop.call_soon_threadsafe(tell, self._dead)

    def _schedule(self) -> None:
        """Make one step for every running answer.

        A function of its own, so that no local variable keeps a request and its cache while the worker waits.
        """
        for request in list(self._running):
            if self._stopping:
                break
            if request.generation.cancelled or self._step(request):
                self._running.remove(request)

    def _wait_for_work(self) -> bool:
        """Start waiting requests while fewer than `parallel` run; block if there is nothing to do. False: stop."""
        with self._changed:
            while not self._stopping:
                self._waiting = deque(one for one in self._waiting if not one.generation.cancelled)
                while self._waiting and len(self._running) < self._parallel:
                    self._running.append(self._waiting.popleft())
                if self._running:
                    return True
                self._changed.wait()
        return False

    def _step(self, request: _Request) -> bool:
        """Generate one token of one request; true when it was the last."""
        generation = request.generation
        try:
            with torch.inference_mode():
                logits = self._prefill(request) if request.prompt is not None else self._decode_one(request)
                token = request.sampler.sample(logits)
        except Exception as error:
            limit = memory_limit_error(error, "another token of a question", reason="ENGINE_MEMORY")
            if limit is None:
                log.exception("a step failed")
            generation.fail(limit or error)
            return True
        if token in self._stop_tokens:
            generation.end(Finish.STOP)
            return True
        generation.put(token)
        request.token = token
        request.tokens_left -= 1
        if request.tokens_left == 0:
            generation.end(Finish.LENGTH)
        return request.tokens_left == 0

    def _prefill(self, request: _Request) -> Tensor:
        """Read the prompt [T, H] → logits [V] of the first token."""
        assert request.prompt is not None
        request.generation.begin()
        request.cache = DynamicCache(config=self._model.config)
        embeds = torch.from_numpy(request.prompt.embeds).to(self._model.device, self._model.dtype)[None]  # [1, T, H]
        request.prompt = None
        logits = self._forward(request.cache, inputs_embeds=embeds)
        request.generation.prefilled()
        return logits

    def _decode_one(self, request: _Request) -> Tensor:
        """Read the last token → logits [V] of the next one."""
        ids = torch.tensor([[request.token]], device=self._model.device)  # [1, 1]
        return self._forward(request.cache, input_ids=ids)

    def _forward(self, cache: DynamicCache, **inputs: Tensor) -> Tensor:
        output = self._model(**inputs, **{CACHE: cache}, use_cache=True, logits_to_keep=1)
        logits: Tensor = output.logits[0, -1].float().cpu()  # [V]; waits for a GPU, so that measured times are right
        return logits
