"""What the endpoint counts, for Prometheus: requests, bytes on the link, tokens, times.

Promises that no label grows with requests: its values are the codes of errors. Leaves the server's own metrics to
`edge-server`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from device_client.meter import Traffic

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
COUNTS = {
    "picture_bytes": "bytes of packets or image files that were sent",
    "pictures": "pictures of requests",
    "cached": "those that were known from earlier requests",
    "views": "views of pictures of requests",
    "features": "visual features that the model saw",
}


class Outcome:
    """How a request ended: "ok", "gone" (the client left), or the code of an error."""

    code = "ok"


class _Traffic(Collector):
    """The bytes on all sockets of the session, read when they are asked for."""

    def __init__(self, traffic: Callable[[], Traffic | None]) -> None:
        self._traffic = traffic

    def collect(self) -> Iterator[Metric]:
        """Yield both counters; nothing where the operating system does not count."""
        if (now := self._traffic()) is not None:
            for name, value in (("up", now.up), ("down", now.down)):
                text = f"The endpoint: bytes on the socket {'to' if name == 'up' else 'from'} the edge server."
                yield CounterMetricFamily(f"tofc_device_bytes_{name}", text, value=value)


class Metrics:
    """Counters and their text."""

    def __init__(self, pictures: Callable[[], int], traffic: Callable[[], Traffic | None]) -> None:
        """`pictures` returns how many pictures are kept, `traffic` the bytes on the link; both in the event loop."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series beside every counter, not needed
        self._registry = registry = CollectorRegistry()
        registry.register(_Traffic(traffic))
        self._counts = {
            name: Counter(f"tofc_device_{name}", f"The endpoint: {text}.", registry=registry)
            for name, text in COUNTS.items()
        }
        self._tokens = Counter("tofc_device_tokens", "The endpoint: tokens.", ["kind"], registry=registry)
        self._requests = Counter(
            "tofc_device_requests", 'The endpoint: chat requests, by outcome: "ok", or the code of the error.',
            ["outcome"], registry=registry,
        )  # fmt: skip
        self._running = Gauge(
            "tofc_device_requests_running", "The endpoint: requests being answered.", registry=registry
        )
        kept = Gauge("tofc_device_pictures_kept", "The endpoint: pictures that cost nothing again.", registry=registry)
        kept.set_function(pictures)
        self._first = Histogram(
            "tofc_device_first_token_seconds", "The endpoint: from a request to its first text.",
            registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self._requests.labels("ok")
        for kind in ("prompt", "completion", "reasoning"):
            self._tokens.labels(kind)

    def text(self) -> bytes:
        """Return all values in Prometheus's text format."""
        return generate_latest(self._registry)

    @contextmanager
    def counted(self) -> Iterator[Outcome]:
        """Count a request while the block runs, and its outcome at the end."""
        outcome = Outcome()
        self._running.inc()
        try:
            yield outcome
        finally:
            self._running.dec()
            self._requests.labels(outcome.code).inc()

    def answered(self, usage: dict[str, Any]) -> None:
        """Count what an answer cost."""
        for name, counter in self._counts.items():
            counter.inc(usage["tofc"][name] or 0)
        self._tokens.labels("prompt").inc(usage["prompt_tokens"])
        self._tokens.labels("completion").inc(usage["completion_tokens"])
        self._tokens.labels("reasoning").inc(usage["completion_tokens_details"]["reasoning_tokens"])
        if usage["tofc"]["first_token_ms"] is not None:
            self._first.observe(usage["tofc"]["first_token_ms"] / 1e3)
