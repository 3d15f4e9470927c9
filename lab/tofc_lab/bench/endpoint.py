"""An endpoint of OpenAI's chat completions: `device-client serve`, or any other.

Promises that a busy endpoint and a lost edge server are waited for, and that a question which is refused counts as
wrong with its reason. Pictures are sent as PNG, so that no pixel changes.
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Sequence
from typing import Any, Self

import httpx2
from PIL import Image

from tofc.errors import UnavailableError, UsageError
from tofc_lab.bench.asker import Reply, message
from tofc_lab.bench.question import Part

TIMEOUT_S = 600.0  # for an answer
TRIES = 20  # of a question, while the endpoint says when to come back
LONGEST_WAIT_S = 30.0


class EndpointAsker:
    """Asks an endpoint. Use it with `async with`."""

    def __init__(self, url: str, api_key: str | None) -> None:
        """Check the address. Raises UsageError."""
        self.url = url.rstrip("/").removesuffix("/chat/completions")
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"--endpoint must be like http://127.0.0.1:8080/v1, got {url}")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx2.AsyncClient(timeout=TIMEOUT_S, headers=headers, trust_env=False)
        self._model = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def model(self) -> str:
        """Return the name of the endpoint's first model. Raises UsageError, UnavailableError."""
        response = await self._sent("GET", f"{self.url}/models")
        try:
            self._model = str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise UsageError(
                f"{self.url}/models answered {response.status_code} without a model; is --endpoint an OpenAI endpoint "
                "that ends in /v1, and the API key right?"
            ) from None
        return self._model

    async def ask(self, parts: Sequence[Part], pictures: Sequence[Image.Image], max_tokens: int) -> Reply:
        """See `Asker`."""
        shown = [{"type": "image_url", "image_url": {"url": _data_url(one)}} for one in pictures]
        body = {
            "model": self._model,
            "messages": [message(parts, shown)],
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        response = await self._sent("POST", f"{self.url}/chat/completions", body)
        found = _object(response)
        if response.status_code in (400, 413):
            return Reply(text="", picture_bytes=0, error=_error(found, response))
        if response.status_code != 200:
            raise UsageError(f"{self.url} answered {response.status_code}: {_error(found, response)}")
        try:
            text = found["choices"][0]["message"]["content"] or ""
        except (LookupError, TypeError):
            raise UsageError(f"{self.url} sent no answer, but {response.text[:200]!r}") from None
        usage = found.get("usage") or {}
        return Reply(text=str(text), picture_bytes=(usage.get("tofc") or {}).get("picture_bytes"))

    async def _sent(self, method: str, url: str, body: dict[str, Any] | None = None) -> httpx2.Response:
        for attempt in range(TRIES):
            try:
                response = await self._client.request(method, url, json=body)
            except httpx2.TransportError as error:
                raise UnavailableError(
                    f"{url} does not answer ({error or type(error).__name__}); is it running?"
                ) from None
            after = response.headers.get("Retry-After", "")
            if response.status_code not in (429, 503) or not after.isdecimal() or attempt + 1 == TRIES:
                return response
            await asyncio.sleep(min(float(after), LONGEST_WAIT_S))
        raise AssertionError("the last attempt returns")


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _object(response: httpx2.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _error(found: dict[str, Any], response: httpx2.Response) -> str:
    error = found.get("error")
    return str(error.get("message", error)) if isinstance(error, dict) else response.text[:200]
