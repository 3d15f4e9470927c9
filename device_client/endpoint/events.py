"""A response as a stream of server-sent events, in OpenAI's form.

    data: {chunk}⏎⏎ … data: [DONE]⏎⏎

Promises that nothing is sent before the first event of an answer is there, so that a refusal has its own HTTP status;
that an error after that is an event; and that text which was sent is never taken back: an answer that would have to
ends with an error. Leaves chunks to `completion`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from device_client.endpoint.completion import Completion
from device_client.endpoint.errors import ApiError, as_api_error
from device_client.endpoint.run import Event
from device_client.transcript import Delta

DONE = "data: [DONE]\n\n"


def event(value: dict[str, Any]) -> str:
    """Return an object as an event."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def stream(
    events: AsyncIterator[Event],
    completion: Completion,
    *,
    ended: Callable[[], dict[str, Any] | None],
    failed: Callable[[ApiError], None],
) -> AsyncGenerator[str]:
    """Yield the events of a response. `ended` returns the last chunk's usage, or None if the client wants none."""
    begun: set[int] = set()
    shown: set[int] = set()
    try:
        async for one in events:
            if one.choice not in begun:
                begun.add(one.choice)
                yield event(completion.chunk(one.choice, {"role": "assistant", "content": ""}))
            if one.delta is not None and (delta := _shown(one.delta, one.choice in shown)):
                shown |= {one.choice} if "content" in delta else set()
                yield event(completion.chunk(one.choice, delta))
            if one.report is not None:
                yield event(completion.chunk(one.choice, {}, one.report))
    except Exception as error:
        failed(found := as_api_error(error))
        yield event(found.body)
    else:
        if (last := ended()) is not None:
            yield event(completion.last_chunk(last))
    yield DONE


def _shown(delta: Delta, begun: bool) -> dict[str, Any]:
    """Return a chunk's delta; nothing to show is empty. Raises ApiError where text would have to be taken back."""
    if delta.thinking:
        return {} if delta.replaces else {"reasoning_content": delta.text}
    if begun and (delta.replaces or delta.restart):
        raise ApiError(
            503,
            "answer_restarted",
            "the answer began again, and what was streamed of it does not count; ask again, or without stream",
            kind="server_error",
            retry_after_s=1.0,
        )
    return {"content": delta.text} if delta.text else {}
