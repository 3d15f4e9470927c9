"""A span for every question, with its parts, made when it has ended.

    question ─┬─ decode (each picture that it waited for)
              ├─ wait (for views) ─ queue (for the engine) ─ prefill ─ generate

Promises to continue the trace of the device that asked, if it sent one. Leaves spans to `tofc.tracing`.
"""

from __future__ import annotations

from edge_server.observer import EndedQuestion, Observer
from tofc.tracing import Tracer


class Traces(Observer):
    """Turns ended questions into spans."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def question(self, ended: EndedQuestion) -> None:
        start_s = ended.arrived_s
        counts = {"prompt_tokens": ended.prompt_tokens, "visual_tokens": ended.visual_tokens}
        span = self._tracer.start("question", start_s, traceparent=ended.traceparent, **counts)
        for began_s, ended_s in ended.decodes_s:
            span.child("decode", began_s, ended_s)
        span.child("wait", start_s, start_s + ended.views_s)
        if ended.first_token_s:  # the first token comes with the end of the prefill
            first_s = start_s + ended.first_token_s
            prefill_s = first_s - ended.prefill_s
            span.child("queue", prefill_s - ended.queue_s, prefill_s)
            span.child("prefill", prefill_s, first_s)
            span.child("generate", first_s, start_s + ended.total_s, new_tokens=ended.answer_tokens)
        failed = ended.reason if ended.outcome == "error" else ""
        span.end(start_s + ended.total_s, error=failed, outcome=ended.outcome, new_tokens=ended.new_tokens)
