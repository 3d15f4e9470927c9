"""The values that a client returns: pieces of an answer, the answer, and its cost.

Promises values that do not change. Leaves measuring to `device_client.report`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from device_client.report import Report
from device_client.rollouts import Progress, Rollout
from device_client.transcript import Delta

Kind = Literal["answer", "thinking", "progress"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of an answer as it arrives.

    `kind`: whether the text belongs to the answer, or to the thinking before it (with `thinking=True` only). With
    `pacore` or `vote` there are also pieces without text that say how far the samples are ("progress").
    `restart`: this text replaces all earlier pieces of its kind. It happens when a link was lost and the model then
    gives another answer, or when the text so far turns out to be thinking.
    """

    text: str
    kind: Kind = "answer"
    restart: bool = False
    progress: Progress | None = None

    @classmethod
    def of(cls, delta: Delta) -> Piece:
        """Return the piece for a delta of `device_client`."""
        kind: Kind = "progress" if delta.progress else "thinking" if delta.thinking else "answer"
        return cls(text=delta.text, kind=kind, restart=delta.replaces or delta.restart, progress=delta.progress)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The cost of a question in bytes and tokens."""

    bytes_picture: int
    """Packets or image files that were sent for this question; 0 when the server had the pictures."""
    bytes_up: int | None
    """Bytes on the socket to the server since the question before, headers included; None where the operating system
    does not count them."""
    bytes_down: int | None
    """Bytes on the socket from the server."""
    prompt_tokens: int
    """Of the whole prompt, the visual tokens included."""
    visual_tokens: int
    """Of the pictures in the prompt."""
    new_tokens: int
    """Generated, thinking included."""
    thinking_tokens: int
    """Generated as thinking."""
    samples: int = 0
    """Answers that were sampled for `pacore` or `vote`; the other counts are sums over all of them."""
    samples_used: int = 0
    """Those that ended with an answer: they were read, or voted."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A complete answer."""

    question: str
    text: str
    thinking: str | None
    """What the model thought before it answered; None unless `thinking=True` asked for it."""
    finish_reason: str
    """"stop": the model ended it; "length": `max_tokens` was reached or the model's context is full; "cancelled"."""
    usage: Usage
    timings: Mapping[str, float] = field(hash=False)
    """Milliseconds by stage: "connect", "load", "views", "tower", "encode", "upload", "first_token" and "total" on this
    side; "server_decode", "server_wait", "server_prefill", "server_first_token" and "server_total" on the server."""

    votes: Mapping[str, int] = field(default_factory=dict, hash=False)
    """With `vote`: how often each different answer was given, the most frequent one first."""
    rollouts: tuple[Rollout, ...] = ()
    """With `rollouts=True`: the samples, in the order of their rounds."""

    @classmethod
    def of(cls, report: Report) -> Answer:
        """Return the answer for a report of `device_client`."""
        return cls(
            question=report.question,
            text=report.answer,
            thinking=report.thinking,
            finish_reason=report.finish_reason,
            usage=Usage(
                bytes_picture=report.bytes_picture,
                bytes_up=report.bytes_up,
                bytes_down=report.bytes_down,
                prompt_tokens=report.usage["prompt_tokens"],
                visual_tokens=report.usage["visual_tokens"],
                new_tokens=report.usage["new_tokens"],
                thinking_tokens=report.usage["thinking_tokens"],
                samples=report.usage.get("samples", 0),
                samples_used=report.usage.get("samples_used", 0),
            ),
            votes={one["text"]: one["count"] for one in report.votes or ()},
            rollouts=tuple(Rollout(**one) for one in report.rollouts or ()),
            timings=dict(report.timings),
        )
