"""What vLLM answers: server-sent events with token ids, or an error, read and checked.

    data: {"choices": [{"index": 0, "token_ids": [7, 9], "finish_reason": null}]}   →  Piece(0, [7, 9], None)
    data: {"error": {"message": "…", "code": 500}}, perhaps after tokens            →  BrokenOffError; 400: RefusedError
    data: [DONE]                                                                    →  the end

Promises that whatever is not such a stream raises one of the errors below. Leaves what they mean for an answer to
`vllm_remote`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2

from edge_server.engine.faults import BrokenOffError, NonsenseError, RefusedError
from tofc.error_text import shortened

#: statuses of an engine that is full, starting, or gone behind a router; other engines may answer
BUSY_OR_GONE = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The next tokens of one sample."""

    index: int
    tokens: list[int]
    finish: str | None  # None: more follow; else vLLM's finish_reason
    stop_token: int | None  # the token that ended the answer, if vLLM says so


async def read_pieces(response: httpx2.Response, *, samples: int, vocabulary: int) -> AsyncIterator[Piece]:
    """Yield the pieces of a streamed answer. Raises BrokenOffError, RefusedError."""
    await raise_for_status(response)
    complete = False
    try:
        async for event in httpx2.EventSource(response):
            if event.data == "[DONE]":
                complete = True
                break
            for piece in _pieces(event.data, samples, vocabulary):
                yield piece
    except httpx2.SSEError as error:
        raise NonsenseError(f"it sent no event stream ({error})") from None
    except httpx2.HTTPError as error:
        raise BrokenOffError(_describe(error)) from error
    if not complete:
        raise BrokenOffError("the stream ended without [DONE]")


async def raise_for_status(response: httpx2.Response) -> None:
    """Raise BrokenOffError or RefusedError unless the status is 200."""
    if response.status_code == 200:
        return
    try:
        text = (await response.aread()).decode("utf-8", "replace")
    except httpx2.HTTPError as error:
        raise BrokenOffError(_describe(error)) from error
    message = f"status {response.status_code}: {shortened(_message(text))}"
    raise (BrokenOffError if response.status_code in BUSY_OR_GONE else RefusedError)(message)


def _pieces(data: str, samples: int, vocabulary: int) -> list[Piece]:
    try:
        event: Any = json.loads(data)
        if (error := event.get("error")) is not None:
            code = error.get("code") if isinstance(error, dict) else None
            refused = isinstance(code, int) and 400 <= code < 500 and code not in BUSY_OR_GONE
            kind = RefusedError if refused else BrokenOffError
            raise kind(f"an error in the stream: {shortened(_message(data))}")
        return [_piece(choice, samples, vocabulary) for choice in event["choices"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NonsenseError(f"an event that cannot be read ({error!r}): {shortened(data)}") from None


def _piece(choice: dict[str, Any], samples: int, vocabulary: int) -> Piece:
    index, tokens = choice["index"], choice.get("token_ids")
    if tokens is None:
        raise NonsenseError("no token_ids in an event; vLLM must know return_token_ids (0.11 or newer)")
    if not (isinstance(index, int) and 0 <= index < samples):
        raise NonsenseError(f"tokens of sample {index!r}, {samples} were asked for")
    for token in tokens:
        if not (isinstance(token, int) and 0 <= token < vocabulary):
            raise NonsenseError(f"the token {token!r}, the vocabulary has {vocabulary}")
    stop = choice.get("stop_reason")
    return Piece(
        index=index,
        tokens=tokens,
        finish=choice.get("finish_reason"),
        stop_token=stop if isinstance(stop, int) else None,
    )


def _message(text: str) -> str:
    """Return the message of an error body, or the body."""
    try:
        found: Any = json.loads(text)
        error = found.get("error", found)
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, AttributeError):
        return text.strip() or "no message"


def _describe(error: httpx2.HTTPError) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
