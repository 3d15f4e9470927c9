"""Traces across device and server, by OpenTelemetry, for whoever asks for them.

    device   ask ─┬─ encode view 0 … ─ upload            server   question ─┬─ decode ─ wait ─ queue
                  └─ traceparent (W3C), in the question ─────────→          └─ prefill ─ generate

Promises that without it nothing is imported, sent or measured: `OFF` does nothing, and its traceparent is empty, which
takes no bytes on the link. Spans have counts, times and reasons, and no text of a question or answer. Leaves the
collector, sampling and batching to OpenTelemetry's SDK and its own environment variables (OTEL_…).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tofc.errors import UsageError
from tofc.install import install
from tofc.version import software_version

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
TRACEPARENT = "traceparent"
MAX_TRACEPARENT = 55  # bytes of one, in the version of W3C's format that exists
EXPORT_TIMEOUT_S = 2  # for one attempt to reach the collector, so that a program ends soon without one


class Span:
    """Does nothing; what a tracer that is off returns. Times are of `time.perf_counter`, in seconds."""

    traceparent = ""
    """What continues this trace elsewhere; empty if nothing should be recorded there."""

    def child(self, name: str, start_s: float, end_s: float, **attributes: str | int | float) -> None:
        """Record a part of this span that is over. One that ends before it starts is left out."""

    def end(self, end_s: float | None = None, *, error: str = "", **attributes: str | int | float) -> None:
        """End the span, now or at `end_s`. `error`: the reason if it failed."""


class Tracer:
    """Does nothing."""

    def start(
        self, name: str, start_s: float | None = None, *, traceparent: str = "", **attributes: str | int | float
    ) -> Span:
        """Start a span, now or at `start_s`; within the span elsewhere that `traceparent` names, if it is valid."""
        return NO_SPAN

    def close(self) -> None:
        """Send what is recorded."""


NO_SPAN = Span()
OFF = Tracer()


class SdkTracer(Tracer):
    """Records with a provider of OpenTelemetry's SDK."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("tofc", software_version())
        self._propagator = TraceContextTextMapPropagator()

    def start(
        self, name: str, start_s: float | None = None, *, traceparent: str = "", **attributes: str | int | float
    ) -> Span:
        context = None
        if traceparent and len(traceparent) <= MAX_TRACEPARENT:
            context = self._propagator.extract({TRACEPARENT: traceparent})
        offset_ns = time.time_ns() - time.perf_counter_ns()  # of this span and its parts: clocks are adjusted
        start_ns = None if start_s is None else _epoch_ns(start_s, offset_ns)
        span = self._tracer.start_span(name, context, attributes=_named(attributes), start_time=start_ns)
        return _SdkSpan(self._tracer, span, offset_ns)

    def close(self) -> None:
        self._provider.shutdown()


class _SdkSpan(Span):
    def __init__(self, tracer: Any, span: Any, offset_ns: int) -> None:
        from opentelemetry import trace

        self._tracer, self._span, self._offset_ns = tracer, span, offset_ns
        self._context = trace.set_span_in_context(span)
        found = span.get_span_context()
        if found.trace_flags.sampled:
            self.traceparent = f"00-{trace.format_trace_id(found.trace_id)}-{trace.format_span_id(found.span_id)}-01"

    def child(self, name: str, start_s: float, end_s: float, **attributes: str | int | float) -> None:
        if end_s >= start_s:
            start_ns, end_ns = (_epoch_ns(time_s, self._offset_ns) for time_s in (start_s, end_s))
            part = self._tracer.start_span(name, self._context, attributes=_named(attributes), start_time=start_ns)
            part.end(end_ns)

    def end(self, end_s: float | None = None, *, error: str = "", **attributes: str | int | float) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attributes(_named(attributes))
        if error:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(None if end_s is None else _epoch_ns(end_s, self._offset_ns))


def open_tracer(service: str, *, wanted: bool = False, warn: Callable[[str], None] = lambda _: None) -> Tracer:
    """Return a tracer that sends to an OTLP collector, as OTEL_EXPORTER_OTLP_ENDPOINT says or at localhost:4317.

    `OFF` unless that variable is set or traces are `wanted`. `service` is its name unless OTEL_SERVICE_NAME gives
    another one. Raises UsageError if they are wanted and OpenTelemetry is not installed; else `warn` gets the message.
    """
    if not wanted and not any(os.environ.get(name) for name in ENDPOINTS):
        return OFF
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        message = f"traces need {error.name}: {install('tracing')}"
        if wanted:
            raise UsageError(f"--trace: {message}") from None
        warn(f"no traces are sent, although {ENDPOINTS[0]} is set: {message}")
        return OFF
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: service}
    provider = TracerProvider(resource=Resource.create(named))
    timeout = None if os.environ.get("OTEL_EXPORTER_OTLP_TIMEOUT") else EXPORT_TIMEOUT_S
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=timeout)))
    return SdkTracer(provider)


def _epoch_ns(perf_counter_s: float, offset_ns: int) -> int:
    """Turn a time of `time.perf_counter` into nanoseconds since 1970."""
    return round(perf_counter_s * 1e9) + offset_ns


def _named(attributes: dict[str, str | int | float]) -> dict[str, str | int | float]:
    return {f"tofc.{name}": value for name, value in attributes.items()}
