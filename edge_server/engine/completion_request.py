"""The request to vLLM's completions API: prompt rows and everything that decides how they are continued.

    rows [T, H] ─ torch.save ─ base64 ─┐
    SamplingParams, stop tokens, salt ─┴─→ JSON

Promises that nothing of sampling is left to the engine's defaults, which it would take from its own copy of the
checkpoint's generation_config.json. Leaves sending to `vllm_remote`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_server.engine.base import Prompt
from edge_server.engine.samples import SEEDS
from edge_server.engine.sampling import SamplingParams
from edge_server.engine.torch_file import save_rows
from tofc.model.identity_probe import LIKELIEST

PATH = "/v1/completions"


@dataclass(frozen=True, kw_only=True)
class CompletionFormat:
    """What all requests of a server have in common."""

    dtype: str  # of the rows: float32, bfloat16 or float16; the engine converts them to its own
    stop_tokens: Sequence[int]  # of the checkpoint

    def answer(
        self, rows: NDArray[np.float32], sampling: SamplingParams, samples: int, *, model: str, salt: str
    ) -> bytes:
        """Return the body that asks for `samples` answers to rows [T, H], streamed; sample i has the seed + i.

        vLLM adds i to the seed itself, and refuses several greedy samples.
        """
        options = _options(sampling.max_tokens) | {
            "stream": True,
            "n": samples,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "seed": sampling.seed % SEEDS,
            "stop_token_ids": list(self.stop_tokens),
        }
        return self._body(rows, options, model=model, salt=salt)

    def likeliest(self, rows: NDArray[np.float32], *, model: str) -> bytes:
        """Return the body that asks for the likeliest tokens after rows [T, H], not streamed."""
        options = _options(1) | {
            "stream": False,
            "n": 1,
            "temperature": 0.0,
            "top_p": 1.0,
            "top_k": 0,
            "seed": 0,
            "stop_token_ids": [],
            "logprobs": LIKELIEST,
            "return_tokens_as_token_ids": True,
        }
        return self._body(rows, options, model=model, salt="identity probe")

    def _body(self, rows: NDArray[np.float32], options: dict[str, Any], *, model: str, salt: str) -> bytes:
        head = json.dumps(options | {"model": model, "cache_salt": salt}).encode()
        # Joined, not encoded as JSON: base64 needs no escapes, and a prompt may have 10 MB.
        return b'%b,"prompt_embeds":"%b"}' % (head[:-1], base64.b64encode(save_rows(rows, self.dtype)))


def _options(max_tokens: int) -> dict[str, Any]:
    """Return the options that are the same in every request."""
    return {
        "prompt": [],  # vLLM can do without, vllm-router cannot
        "max_tokens": max_tokens,
        "min_tokens": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": [],
        "ignore_eos": True,  # only `stop_token_ids` end an answer
        "skip_special_tokens": False,
        "return_token_ids": True,
    }


def cache_salt(prompt: Prompt, model_id: str) -> str:
    """Return what keeps a client's cached rows apart from those of others, at every server of one model."""
    return _hashed(f"salt\0{model_id}\0{prompt.client}")


def session_id(prompt: Prompt) -> str:
    """Return what questions about the same pictures have in common, else those of a client, for routers.

    Hashed: nothing that an engine receives names a client.
    """
    return _hashed(f"session\0{prompt.client}\0{prompt.pictures}")


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
