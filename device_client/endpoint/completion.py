"""OpenAI's objects: a chat completion, the chunks of a stream, and what an answer cost.

Promises the fields that clients read, `reasoning_content` apart from the content, and under `tofc` what no other server
has: bytes on the link. Leaves sending them to `app` and `events`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from device_client.endpoint.request import ChatRequest
from device_client.endpoint.run import ChatRun
from device_client.picture import Picture
from device_client.report import Report

FINISH = {"stop": "stop", "length": "length"}  # any other way is told as "stop"


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What all objects of one response share."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, reports: Sequence[Report], usage: dict[str, Any]) -> dict[str, Any]:
        """Return the response to a request without stream."""
        choices = []
        for number, report in enumerate(reports):
            message: dict[str, Any] = {"role": "assistant", "content": report.answer}
            if report.thinking:
                message["reasoning_content"] = report.thinking
            choices.append({**self._choice(number, report), "message": message})
        return {**self._head("chat.completion"), "choices": choices, "usage": usage, "timings": timings(reports[0])}

    def chunk(self, choice: int, delta: dict[str, Any], report: Report | None = None) -> dict[str, Any]:
        """Return a chunk of a stream; the last one of a choice has its report."""
        ended = {} if report is None else {"timings": timings(report)}
        return {
            **self._head("chat.completion.chunk"),
            "choices": [{**self._choice(choice, report), "delta": delta}],
            **ended,
        }

    def last_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Return the chunk that has no choice, but the usage."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, number: int, report: Report | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": number, "logprobs": None, "finish_reason": None}
        if report is not None:
            choice["finish_reason"] = FINISH.get(report.finish_reason, "stop")
            extra = {"votes": report.votes, "rollouts": report.rollouts}
            if any(value is not None for value in extra.values()):
                choice["tofc"] = {name: value for name, value in extra.items() if value is not None}
        return choice


def usage_of(run: ChatRun, request: ChatRequest, pictures: Sequence[Picture], cached: int) -> dict[str, Any]:
    """Return the usage of all choices. `cached`: pictures that were known from earlier requests."""
    reports = [run.reports[number] for number in sorted(run.reports)]
    first = reports[0]
    prompt, completion, thinking = (
        sum(report.usage[name] for report in reports) for name in ("prompt_tokens", "new_tokens", "thinking_tokens")
    )
    if not request.reasoning.samples:  # OpenAI counts the prompt once, however many choices there are
        prompt = first.usage["prompt_tokens"]
    own: dict[str, Any] = {
        "picture_bytes": sum(report.bytes_picture for report in reports),
        "bytes_up": _most([report.bytes_up for report in reports]),
        "bytes_down": _most([report.bytes_down for report in reports]),
        "pictures": len(pictures),
        "cached": cached,
        "views": first.views,
        "features": first.features,
        "first_token_ms": run.first_token_ms,
        "tower_ms": round(sum(report.timings["tower"] for report in reports), 2),
    }
    if request.reasoning.samples:
        own |= {name: first.usage.get(name, 0) for name in ("samples", "samples_used")}
    if request.ignored:
        own["ignored"] = list(request.ignored)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"image_tokens": first.features},
        "completion_tokens_details": {"reasoning_tokens": thinking},
        "tofc": own,
    }


def timings(report: Report) -> dict[str, float]:
    """Return llama.cpp's times of one choice; the rate only where the tokens that arrived are known."""
    new, first, total = report.usage["new_tokens"], report.timings["first_token"], report.timings["total"]
    predicted_ms = max(total - first, 0.0)
    found = {
        "prompt_n": report.usage["prompt_tokens"],
        "prompt_ms": report.timings["server_prefill"],
        "predicted_n": new,
        "predicted_ms": round(predicted_ms, 2),
    }
    if report.usage.get("samples"):  # their tokens came before the answer's first, at one time
        return found
    seen = new if report.thinking is not None else new - report.usage["thinking_tokens"]  # hidden ones came before
    return found | {
        "predicted_per_second": round((seen - 1) / predicted_ms * 1e3, 2) if seen > 1 and predicted_ms else 0.0
    }


def _most(values: Sequence[int | None]) -> int | None:
    """Return the most: choices run at one time, and each counts the bytes of all. None where one was not measured."""
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None
