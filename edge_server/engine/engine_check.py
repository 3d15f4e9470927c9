"""Whether an engine at some address lives, and whether it runs this server's model.

    GET /health ── GET /v1/models ─→ its name, its positions ── the probe's prompts ─→ log probabilities ─→ distance

Promises an error that says what is wrong at which address. Leaves when to look to `endpoints`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import numpy as np
from numpy.typing import NDArray

from edge_server.engine.completion_request import PATH, CompletionFormat
from edge_server.engine.completion_stream import raise_for_status
from edge_server.engine.faults import BrokenOffError, RefusedError, UnreachableError
from tofc.errors import UsageError
from tofc.model.identity_probe import TOLERANCE, IdentityProbe, distance

HEALTH_TIMEOUT_S = 5.0  # a busy engine answers late; one whose process has ended refuses at once
PROBE_TIMEOUT_S = 120.0  # an engine that has just started prepares its kernels with it
SOME_UNHEALTHY = "Unhealthy servers"  # what vllm-router says, with status 503, while it lacks one of its engines
TOKEN_ID = "token_id:"  # as vLLM names a token with return_tokens_as_token_ids


class Check:
    """Looks at engines for one model; `embed` turns token ids [T] into rows [T, H]."""

    def __init__(
        self,
        client: httpx2.AsyncClient,
        probe: IdentityProbe,
        form: CompletionFormat,
        embed: Callable[[Sequence[int]], NDArray[np.float32]],
    ) -> None:
        self._client = client
        self._probe = probe
        self._form = form
        self._embed = embed

    async def health(self, url: str) -> None:
        """Return if the engine says that it is well. Raises BrokenOffError, UnreachableError if nobody listens."""
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                await self._get(f"{url}/health")
        except RefusedError:  # it answers, which is all that is asked here: `identity` says what is wrong
            pass
        except BrokenOffError as error:
            if SOME_UNHEALTHY not in str(error):
                raise
        except TimeoutError:
            raise BrokenOffError(f"/health did not answer within {HEALTH_TIMEOUT_S:g} s") from None

    async def identity(
        self, url: str, known: tuple[str, int] | None = None, *, timeout_s: float = PROBE_TIMEOUT_S
    ) -> tuple[str, int]:
        """Return the name of the engine's model and its positions, which are asked for unless `known`.

        A router that keeps sessions at their engines may choose another one each time. Raises BrokenOffError,
        UsageError.
        """
        session = secrets.token_hex(16)
        try:
            async with asyncio.timeout(timeout_s):
                model, positions = known or _model(await self._get(f"{url}/v1/models"))
                asking = [self._likeliest(url, model, one.ids, session) for one in self._probe.prompts]
                found = await asyncio.gather(*asking)
        except TimeoutError:
            raise BrokenOffError(f"the identity probe was not answered within {timeout_s:.0f} s") from None
        except RefusedError as error:
            raise UsageError(f"the engine {url} cannot be used: {error}{_remedy(str(error))}") from None
        apart = distance(self._probe, found)
        if not apart <= TOLERANCE:
            raise UsageError(
                f"the engine {url} runs another model than this server's {self._probe.model_id}: its log probabilities "
                f"differ by {apart:.2f} nats, at most {TOLERANCE} are allowed; start both with the same server half "
                "(tofc-lab split)"
            )
        return model, positions

    async def _likeliest(self, url: str, model: str, ids: Sequence[int], session: str) -> dict[int, float]:
        body = self._form.likeliest(self._embed(ids), model=model)
        headers = {"content-type": "application/json", "x-session-id": session}
        answer = await self._read("POST", url + PATH, content=body, headers=headers)
        try:
            (top,) = answer["choices"][0]["logprobs"]["top_logprobs"]
            return {int(name.removeprefix(TOKEN_ID)): float(value) for name, value in top.items()}
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise RefusedError(f"its answer to the identity probe cannot be read ({error!r})") from None

    async def _get(self, url: str) -> Any:
        return await self._read("GET", url)

    async def _read(self, method: str, url: str, **request: Any) -> Any:
        """Return a JSON body, None if it is empty. Raises BrokenOffError, RefusedError."""
        try:
            response = await self._client.request(method, url, **request)
        except httpx2.HTTPError as error:
            kind = UnreachableError if _refused(error) else BrokenOffError
            raise kind(f"{type(error).__name__}: {error}") from None
        await raise_for_status(response)
        try:
            return json.loads(response.content) if response.content.strip() else None
        except ValueError:
            raise RefusedError("it answered what is not JSON; it must be vLLM's OpenAI server, or a router") from None


def _refused(error: BaseException | None) -> bool:
    """Return whether a connection was refused, which the client says only in what caused its error."""
    while error is not None and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None


def _model(found: Any) -> tuple[str, int]:
    try:
        first = found["data"][0]
        return str(first["id"]), int(first["max_model_len"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RefusedError(f"/v1/models names no model with max_model_len ({error!r})") from None


def _remedy(problem: str) -> str:
    """Return what to do about a refusal, as far as its text tells."""
    if "prompt-embeds" in problem:
        return "; start it with --enable-prompt-embeds"
    if "401" in problem or "403" in problem:
        return "; give its API key with --engine-key-file"
    if "404" in problem:
        return "; --engine-url is its root, without /v1: it must be vLLM's OpenAI server, or a router before several"
    return ""
