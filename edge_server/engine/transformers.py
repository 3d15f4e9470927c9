"""The embedded engine: Qwen3 of transformers, one worker thread, one token a turn for everybody.

Promises that an answer depends on its prompt and its sampling only, never on what else runs: requests
take turns, one step each, instead of being computed as one batch. A batch would be faster on a GPU, but
its matrix products have other shapes, sum in another order, and now and then round a close decision to
another token; then the same question would be answered differently in a busy hour. Leaves
throughput beyond that to other engines, and text to `text`.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, Qwen3ForCausalLM

from edge_server.engine.base import Finish, Generation, Prompt, Sampling
from edge_server.engine.qwen3 import CACHE
from edge_server.engine.sampling import Sampler
from edge_server.shortage import shortage
from shared.rpc.errors import LimitError, UnavailableError

log = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class _Request:
    generation: Generation
    prompt: Prompt | None  # until it has been read
    sampler: Sampler
    left: int  # tokens that may still come
    token: int = -1  # the last one
    cache: Any = None


class TransformersEngine:
    """Runs a `Qwen3ForCausalLM`.

    `stop_tokens` end an answer; at most `parallel` requests hold a key-value cache, and `queue` more
    wait in line.
    """

    name = "transformers"

    def __init__(
        self, model: Qwen3ForCausalLM, stop_tokens: Collection[int], *, parallel: int = 8, queue: int = 32
    ) -> None:
        self._model: Any = model  # Any: transformers leaves its calls untyped
        self._model.eval()
        self._stop_tokens = frozenset(stop_tokens)
        self._parallel = parallel
        self._queue = queue
        self._waiting: deque[_Request] = deque()
        self._running: list[_Request] = []
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="tofc-engine", daemon=True)
        self._thread.start()

    @property
    def max_positions(self) -> int:
        return int(self._model.config.max_position_embeddings)

    def submit(self, prompt: Prompt, sampling: Sampling) -> Generation:
        generation = Generation(on_close=self._wake)
        left = min(sampling.max_tokens, self.max_positions - len(prompt.embeds))
        request = _Request(generation=generation, prompt=prompt, sampler=Sampler(sampling), left=left)
        with self._changed:
            if self._stopping:
                raise UnavailableError("the server is stopping; try again later", reason="STOPPING")
            # Those that were given up or have just ended leave before the next step; they must not keep others out.
            present = [one.generation for one in [*self._running, *self._waiting]]
            taken = sum(not one.cancelled and one.finish is None for one in present)
            if taken >= self._queue + self._parallel:
                raise LimitError(
                    f"{taken} questions are being answered or wait, which is all this server takes; ask again in a few "
                    "seconds",
                    reason="ENGINE_BUSY",
                )
            self._waiting.append(request)
            self._changed.notify()
        return generation

    async def stop(self) -> None:
        """Ends the worker after its current step; answers under way are given up."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    # the worker thread

    def _work(self) -> None:
        while self._admit():
            self._turn()
        error = UnavailableError("the server is stopping; try again later", reason="STOPPING")
        for request in [*self._running, *self._waiting]:
            request.generation.fail(error)
        self._running.clear()
        self._waiting.clear()

    def _turn(self) -> None:
        """One step of everybody. Of its own, so that no local keeps a request, and its cache, while `_admit` waits."""
        for request in list(self._running):
            if self._stopping:
                break
            if request.generation.cancelled or self._step(request):
                self._running.remove(request)

    def _admit(self) -> bool:
        """Fills the free places; waits while there is nothing to do. False: stop."""
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
        """One token of one request; true when it was the last."""
        generation = request.generation
        try:
            with torch.inference_mode():
                logits = self._first(request) if request.prompt is not None else self._next(request)
                token = request.sampler.choose(logits)
        except Exception as error:
            told = shortage(error, "another token of a question", reason="ENGINE_MEMORY")
            if told is None:
                log.exception("a step failed")
            generation.fail(told or error)
            return True
        if token in self._stop_tokens:
            generation.end(Finish.STOP)
            return True
        generation.put(token)
        request.token = token
        request.left -= 1
        if request.left == 0:
            generation.end(Finish.LENGTH)
        return request.left == 0

    def _first(self, request: _Request) -> Tensor:
        """Reads the prompt [T, H] → logits [V] of the next token."""
        assert request.prompt is not None
        request.generation.begin()
        request.cache = DynamicCache(config=self._model.config)
        embeds = torch.from_numpy(request.prompt.embeds).to(self._model.device, self._model.dtype)[None]  # [1, T, H]
        request.prompt = None
        logits = self._forward(request.cache, inputs_embeds=embeds)
        request.generation.prefilled()
        return logits

    def _next(self, request: _Request) -> Tensor:
        ids = torch.tensor([[request.token]], device=self._model.device)  # [1, 1]
        return self._forward(request.cache, input_ids=ids)

    def _forward(self, cache: DynamicCache, **inputs: Tensor) -> Tensor:
        found = self._model(**inputs, **{CACHE: cache}, use_cache=True, logits_to_keep=1)
        logits: Tensor = found.logits[0, -1].float().cpu()  # [V]; waits for a GPU, so that times are true
        return logits
