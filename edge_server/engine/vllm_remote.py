"""vLLM in other processes or on other machines, asked over HTTP with rows instead of tokens.

    submit ─→ choose an engine ─→ POST /v1/completions, streamed ─→ Generation
                    ↑ it broke off: ask for the rest at another one, after the rows of the tokens already said

Promises that every token is said once, whatever happens to engines; that closing an answer closes its connection, which
frees the engine; and that no message to a device contains an engine's address. Leaves batching, caches and the order of
requests to vLLM, and which engines are usable to `endpoints`.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import httpx2
import numpy as np
from numpy.typing import NDArray

from edge_server.engine.base import Finish, HealthCallback, Prompt
from edge_server.engine.completion_request import PATH, CompletionFormat, cache_salt, session_id
from edge_server.engine.completion_stream import read_pieces
from edge_server.engine.endpoints import Endpoint, Endpoints
from edge_server.engine.engine_check import Check
from edge_server.engine.faults import BrokenOffError, NonsenseError, RefusedError
from edge_server.engine.refusals import stopping
from edge_server.engine.samples import Sample
from edge_server.engine.vllm_answers import VllmAnswers
from tofc.errors import CallError, InternalError, UnavailableError
from tofc.model.identity_probe import IdentityProbe

log = logging.getLogger(__name__)

ATTEMPTS = 6  # at one answer: a router may choose an engine that has ended a few times more
AGAIN_S = 0.3  # before the second attempt at an only engine or router, doubled for each after it: 9 s in all
ENGINES_PER_ANSWER = 3  # a request that kills its engine must not kill them all
SILENCE_S = 120.0  # without a byte of a stream, after which its engine counts as gone
KEEP_IDLE_S = 2.0  # vLLM closes idle connections after 5 s


@dataclass(frozen=True, kw_only=True)
class RemoteModel:
    """What the engines run, as this server knows it."""

    probe: IdentityProbe
    form: CompletionFormat
    embed: Callable[[Sequence[int]], NDArray[np.float32]]  # token ids [T] → rows [T, H]
    vocabulary: int
    max_positions: int


class VllmRemoteEngine(VllmAnswers):
    """Asks engines that `find_engines` has found, with the API key `key`."""

    name = "vllm-remote"
    read_ahead_rows = 256  # all rows are sent again with each request
    recovers = True

    def __init__(
        self, engines: Sequence[Endpoint], key: str | None, model: RemoteModel, *, parallel: int = 8, queue: int = 32
    ) -> None:
        super().__init__(model.form.stop_tokens, parallel=parallel, queue=queue)
        self.max_positions = min(model.max_positions, *(one.max_positions for one in engines if one.max_positions))
        self._model = model
        self._client, self._checking = make_client(key, KEEP_IDLE_S), make_client(key)
        check = Check(self._checking, model.probe, model.form, model.embed)
        self._endpoints = Endpoints(engines, check, self._health_changed)
        self._endpoints.max_positions = self.max_positions

    def _require_alive(self) -> None:
        if self._stopping:
            raise stopping()
        self._endpoints.start()
        if not self._endpoints.alive:
            raise _lost()

    def watch(self, on_health: HealthCallback) -> None:
        self._on_health.append(on_health)
        self._endpoints.start()

    async def stop(self) -> None:
        """End all answers, which fail with UnavailableError, and close all connections."""
        await self._stop_answers()
        await self._endpoints.stop()
        await self._client.aclose()
        await self._checking.aclose()

    def _health_changed(self) -> None:
        for tell in self._on_health:
            tell(None if self._endpoints.alive else _lost())

    async def _answer(self, prompt: Prompt, samples: list[Sample]) -> None:
        await self._follow(prompt, samples)

    async def _follow(self, prompt: Prompt, samples: list[Sample], first: int = 0) -> None:
        """Ask engine after engine until the samples have ended, from attempt `first` on.

        Raises UnavailableError, InternalError.
        """
        avoid: set[str] = set()
        for attempt in range(first, ATTEMPTS):
            if avoid.issuperset(one.url for one in self._endpoints.all):
                # Behind an only address there may be a router, which needs seconds to notice that an engine has ended.
                await asyncio.sleep(AGAIN_S * 2 ** (attempt - 1))
            # A router sends another session to another engine, so that it does not ask one again that has just ended.
            session = session_id(prompt) + (f"-{attempt}" if attempt else "")
            wanted = [number for number, one in enumerate(samples) if one.open]
            if not wanted:
                return
            samples = samples[wanted[0] : wanted[-1] + 1]  # closed ones in between too: vLLM counts the seeds
            if len(samples) > 1 and any(one.said for one in samples):  # they go on from different tokens
                going_on = [one for one in samples if one.open]
                following = [self._follow(prompt, [one], attempt) for one in going_on]
                for one, failed in zip(going_on, await asyncio.gather(*following, return_exceptions=True), strict=True):
                    if isinstance(failed, CallError):
                        one.fail(failed)  # itself only
                    elif failed is not None:
                        raise failed
                return
            endpoint = await self._endpoints.choose(session, avoid)
            if endpoint is None:
                raise _lost()
            endpoint.requests += 1
            try:
                await self._ask(endpoint, prompt, samples, session)
                return
            except BrokenOffError as error:
                log.warning("an answer of the engine %s broke off: %s", endpoint.url, error)
                avoid.add(endpoint.url)
                self._endpoints.report(endpoint, str(error))
                if len(avoid) == ENGINES_PER_ANSWER:
                    break
            except RefusedError as error:
                log.error("the engine %s: %s", endpoint.url, error)
                if isinstance(error, NonsenseError):
                    self._endpoints.report(endpoint, str(error))
                break
            finally:
                endpoint.requests -= 1
        raise InternalError("the engine that runs the model failed; the server's log says why", reason="ENGINE_FAILED")

    async def _ask(self, endpoint: Endpoint, prompt: Prompt, samples: list[Sample], session: str) -> None:
        """Hand on what one engine says, to several samples only from their beginning.

        Raises BrokenOffError, RefusedError.
        """
        first = samples[0]
        if not first.tokens_left:  # only the end was lost
            first.end(Finish.LENGTH)
            return
        rows = np.concatenate([prompt.embeds, self._model.embed(first.said)]) if first.said else prompt.embeds
        body = await asyncio.to_thread(
            self._model.form.answer,
            rows,
            replace(first.sampling, max_tokens=first.tokens_left),
            len(samples),
            model=endpoint.model,
            salt=cache_salt(prompt, self._model.probe.model_id),
        )
        headers = {"content-type": "application/json", "x-session-id": session}
        for one in samples:
            one.begin()
        lost = asyncio.timeout(None)
        endpoint.streams.add(lost)
        try:
            async with (
                lost,
                self._client.stream("POST", endpoint.url + PATH, content=body, headers=headers) as response,
            ):
                async for piece in read_pieces(response, samples=len(samples), vocabulary=self._model.vocabulary):
                    samples[piece.index].take(
                        piece.tokens, piece.finish, stop_token=piece.stop_token, stop_tokens=self._stop_tokens
                    )
        except TimeoutError:
            raise BrokenOffError("its engine was lost") from None
        except httpx2.HTTPError as error:
            raise BrokenOffError(f"{type(error).__name__}: {error}") from None
        finally:
            endpoint.streams.discard(lost)
        if any(one.open for one in samples):
            raise BrokenOffError("the stream ended before the answer")


def make_client(key: str | None, keep_idle_s: float = 0.0) -> httpx2.AsyncClient:
    """Return a client for engines; `key` is their API key. It takes no proxy from the environment.

    An idle connection is kept for `keep_idle_s`. Without, no request can fail because the engine has just closed one.
    """
    return httpx2.AsyncClient(
        headers={"authorization": f"Bearer {key}"} if key else {},
        limits=httpx2.Limits(
            max_connections=None, max_keepalive_connections=64 if keep_idle_s else 0, keepalive_expiry=keep_idle_s
        ),
        timeout=httpx2.Timeout(SILENCE_S, connect=5.0),
        trust_env=False,
        verify=ssl.create_default_context(),
    )


async def find_engines(urls: Sequence[str], key: str | None, model: RemoteModel) -> list[Endpoint]:
    """Look at all engines once.

    Raises UsageError for one that cannot be used or runs another model, UnavailableError if none answers.
    """
    found = [Endpoint(url=url) for url in urls]
    async with make_client(key) as client:
        endpoints = Endpoints(found, Check(client, model.probe, model.form, model.embed))
        await endpoints.first_look()
    if not endpoints.alive:
        problems = "; ".join(f"{one.url}: {one.problem}" for one in found)
        raise UnavailableError(f"no engine answers ({problems}); start vLLM there, then this server")
    return found


def _lost() -> UnavailableError:
    return UnavailableError("the engine that runs the model was lost; ask again in a moment", reason="ENGINE_LOST")
