"""vLLM in this process, for a machine with one GPU: no second server to run, no network between.

    submit ─→ AsyncLLM.generate, with rows ─→ vLLM's own process with the decoder ─→ token ids ─→ Generation

Promises the same answers as vLLM elsewhere, and that a decoder which dies ends the server. Leaves batching and caches
to vLLM, several GPUs or machines to `vllm_remote`. Needs vLLM in this environment; only this module imports it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from vllm import SamplingParams as VllmParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from edge_server.engine.base import HealthCallback, Prompt
from edge_server.engine.completion_request import cache_salt
from edge_server.engine.refusals import failed, stopping
from edge_server.engine.samples import SEEDS, Sample
from edge_server.engine.vllm_answers import VllmAnswers
from tofc.errors import UnavailableError

log = logging.getLogger(__name__)

WATCH_S = 0.5  # between two looks at whether vLLM's process lives
#: on a CPU vLLM's usual blocks of 128 rows are too long for short prompts to be found in the cache, and splitting the
#: prefill of a request with a seed ends its process
CPU_OPTIONS = {"enforce_eager": True, "block_size": 32, "enable_chunked_prefill": False}


class VllmEngine(VllmAnswers):
    """Runs a checkpoint's server half."""

    name = "vllm"
    read_ahead_rows = 32
    recovers = False

    def __init__(self, llm: AsyncLLM, stop_tokens: Sequence[int], *, model_id: str, parallel: int, queue: int) -> None:
        super().__init__(stop_tokens, parallel=parallel, queue=queue)
        self.max_positions = int(llm.model_config.max_model_len)
        self._llm = llm
        self._dtype: torch.dtype = llm.model_config.dtype
        self._model_id = model_id
        self._numbers = itertools.count()
        self._dead: UnavailableError | None = None
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    def of(
        cls, half: Path, stop_tokens: Sequence[int], *, model_id: str, dtype: str, parallel: int, queue: int
    ) -> VllmEngine:
        """Load a server half; on a GPU vLLM takes most of its memory."""
        options: dict[str, Any] = CPU_OPTIONS if current_platform.is_cpu() else {}
        arguments = AsyncEngineArgs(
            model=str(half),
            dtype=dtype,
            enable_prompt_embeds=True,
            generation_config="vllm",  # nothing of sampling from there: each request says all of it
            max_num_seqs=parallel,
            disable_log_stats=True,
            **options,
        )
        llm = AsyncLLM.from_engine_args(arguments)
        return cls(llm, stop_tokens, model_id=model_id, parallel=parallel, queue=queue)

    def _require_alive(self) -> None:
        if self._dead is not None:
            raise self._dead
        if self._stopping:
            raise stopping()

    def watch(self, on_health: HealthCallback) -> None:
        self._on_health.append(on_health)
        self._watching = self._watching or asyncio.create_task(self._watch(), name="vllm watch")

    async def stop(self) -> None:
        """End all answers, which fail with UnavailableError, and vLLM's process."""
        await self._stop_answers()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await asyncio.to_thread(self._llm.shutdown)

    async def _answer(self, prompt: Prompt, samples: list[Sample]) -> None:
        first = samples[0].sampling
        params = VllmParams(
            n=len(samples),
            temperature=first.temperature,
            top_p=first.top_p,
            top_k=first.top_k,
            min_p=0.0,
            repetition_penalty=1.0,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            seed=first.seed % SEEDS,
            max_tokens=first.max_tokens,
            stop_token_ids=list(self._stop_tokens),
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        rows = torch.from_numpy(prompt.embeds).to(self._dtype)  # [T, H]
        asked = {"prompt_embeds": rows, "cache_salt": cache_salt(prompt, self._model_id)}
        for one in samples:
            one.begin()
        try:
            # Closing the generator, as a cancelled task does, ends the request in vLLM.
            async for result in self._llm.generate(asked, params, f"tofc-{next(self._numbers)}"):
                for output in result.outputs:
                    stop = output.stop_reason if isinstance(output.stop_reason, int) else None
                    samples[output.index].take(
                        output.token_ids, output.finish_reason, stop_token=stop, stop_tokens=self._stop_tokens
                    )
        except EngineDeadError:
            raise self._lost() from None

    async def _watch(self) -> None:
        """Look whether vLLM's process lives, also while nobody asks it."""
        while True:
            try:
                await self._llm.check_health()
            except EngineDeadError:
                self._lost()
                return
            await asyncio.sleep(WATCH_S)

    def _lost(self) -> UnavailableError:
        if self._dead is None:
            self._dead = failed()
            for tell in self._on_health:
                tell(self._dead)
        return self._dead
