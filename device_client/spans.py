"""The parts of a question on the device, as spans: each view that was encoded, each upload, the answer.

Promises to record what a question took also if it failed or was given up. Leaves spans to `tofc.tracing`, and what the
server did to the server, which continues the trace.
"""

from __future__ import annotations

import time

from device_client.question import PendingQuestion
from tofc.errors import CallError


def end_span(question: PendingQuestion, started_s: float, error: BaseException | None) -> None:
    """End the span of a question that began at `started_s` and ended now, by `error` or with its answer."""
    span, ended_s = question.span, time.perf_counter()
    for stats in question.upload_stats:
        for view in stats.encoded_now:
            encode_s = view.ended_s - view.encode_ms / 1e3
            tower_s = encode_s - view.tower_ms / 1e3
            span.child("views", tower_s - view.views_ms / 1e3, tower_s, view=view.index)
            span.child("tower", tower_s, encode_s, view=view.index)
            span.child("encode", encode_s, view.ended_s, view=view.index)
        if stats.ended_s:
            span.child("upload", stats.started_s, stats.ended_s, bytes=stats.n_bytes, views=stats.n_views)
    if question.first_token_ms:
        span.child("answer", started_s + question.first_token_ms / 1e3, ended_s)
    reason = "" if error is None else error.reason if isinstance(error, CallError) else type(error).__name__
    span.end(ended_s, error=reason, attempts=question.attempts)
