"""Everything that /metrics shows: its names, its buckets, and what they mean.

    Observer's calls ─→ counters, histograms ─┐
    the server's state, when asked for ─→ gauges ─┴─→ registry ─→ text for Prometheus

Promises that no label has more values than the protocol has reasons, so a client cannot make series without end, and
that everything here runs in the event loop, because engine and sessions are asked there. Leaves HTTP to
`monitoring_port`.

The picture cache has the names that NVIDIA Dynamo gives its cache of a vision encoder's output (there with the prefix
dynamo_component_), so that dashboards for one are quickly those for the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from edge_server.admission import Admission
from edge_server.backend import Backend
from edge_server.observer import EndedQuestion, Form, Observer, Scope, Write
from edge_server.picture_cache import PictureCache
from tofc.errors import CallError, Status
from tofc.v1 import tofc_pb2 as pb

#: Seconds: from a cached short question on a fast machine to a long answer with a queue before it.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
TOKENS_PER_S = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
OUTCOMES = ("stop", "length", "cancelled", "disconnected", "error")
FORMS: tuple[Form, ...] = ("features", "image")


@dataclass(frozen=True, kw_only=True)
class Described:
    """A metric as a document lists it. A histogram's series are name_bucket (with `le`), name_sum and name_count."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What gauges are read from."""

    pictures: PictureCache
    sessions: int  # open
    sessions_allowed: int
    ready: bool
    engine_up: bool
    backend: Backend | None  # None: no model is loaded
    admission: Admission | None


class Metrics(Observer):
    """The metrics of one server, in a registry that is not shared with other servers of this process."""

    def __init__(self, version: str) -> None:
        self._version = version
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series beside every counter, not needed
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        self.described: list[Described] = []

        def describe(kind: str, name: str, text: str, labels: tuple[str, ...]) -> None:
            self.described.append(Described(name=name, kind=kind, labels=labels, text=text))

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            describe("counter", f"{name}_total", text, labels)
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            describe("gauge", name, text, labels)
            return Gauge(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            describe("histogram", name, text, ())
            return Histogram(name, text, registry=registry, buckets=buckets)

        self._build = gauge("tofc_build_info", "Always 1; the labels say what runs.", ("version", "model", "engine"))
        self._ready = gauge("tofc_ready", "1: sessions are accepted (/readyz).")
        self._engine_up = gauge("tofc_engine_up", "1: a model is loaded and its engine answers.")

        self._sessions = gauge("tofc_sessions", "Sessions open now.")
        self._sessions_allowed = gauge("tofc_sessions_limit", "Most sessions open at once (--sessions).")
        self._sessions_ended = counter("tofc_sessions_ended", "Sessions that have ended.")
        self._session_seconds = counter("tofc_session_seconds", "Seconds that ended sessions were open.")
        self._errors = counter(
            "tofc_errors",
            "Errors sent to clients. Refusals for want of room have the status RESOURCE_EXHAUSTED or UNAVAILABLE.",
            ("scope", "status", "reason"),
        )

        self._questions = counter("tofc_questions", "Questions that were accepted and have ended.", ("outcome",))
        self._views_wait = histogram("tofc_views_wait_seconds", "Time that questions waited for views of pictures.")
        self._queue_wait = histogram("tofc_queue_wait_seconds", "Time that questions waited for the engine.")
        self._prefill = histogram("tofc_prefill_seconds", "Time that the engine took to read a prompt.")
        self._first_token = histogram(
            "tofc_first_token_seconds", "Time from a question's arrival to its first token, where it has no samples."
        )
        self._total = histogram("tofc_question_seconds", "Time from a question's arrival to the end of its answer.")
        self._tokens_per_s = histogram(
            "tofc_answer_tokens_per_second", "Tokens per second behind the first, of each answer.", TOKENS_PER_S
        )
        self._prompt_tokens = counter("tofc_prompt_tokens", "Tokens of prompts.", ("kind",))
        self._new_tokens = counter("tofc_new_tokens", "Tokens generated, counted when an answer ends.", ("kind",))

        self._running = gauge("tofc_engine_running", "Answers that the engine computes now.")
        self._running_allowed = gauge("tofc_engine_running_limit", "Most answers that it computes at once.")
        self._waiting = gauge("tofc_engine_waiting", "Prompts that wait in the engine.")
        self._waiting_allowed = gauge("tofc_engine_waiting_limit", "Most prompts that wait in the engine.")
        self._kv_bytes = gauge("tofc_engine_cache_bytes", "Bytes of keys and values; 0: the engine does not tell.")
        self._kv_allowed = gauge("tofc_engine_cache_limit_bytes", "Most bytes of keys and values.")
        self._admitted = gauge("tofc_admission_admitted", "Questions that hold a place of the engine.")
        self._admission_waiting = gauge("tofc_admission_waiting", "Questions that wait for a place of the engine.")

        self._pictures = counter("tofc_pictures", "Pictures that sessions announced.", ("form",))
        self._received = counter("tofc_received_bytes", "Bytes of packets and image files received.", ("form",))
        self._sent = counter("tofc_sent_bytes", "Bytes of responses, without gRPC's framing.")
        self._view_decode = histogram("tofc_view_decode_seconds", "Time to decode one view's packet.", SHORT_SECONDS)

        # A cache counts for itself; these follow it when they are asked for.
        self._hits = counter("embedding_cache_hits", "Pictures of questions that were held completely.")
        self._misses = counter("embedding_cache_misses", "Pictures of questions that had to arrive first.")
        self._evictions = counter("embedding_cache_evictions", "Pictures dropped to make room.")
        self._utilization = gauge("embedding_cache_utilization", "Share of the memory for pictures in use, 0 to 1.")
        self._cache_bytes = gauge("embedding_cache_current_bytes", "Bytes of pictures held.")
        self._entries = gauge("embedding_cache_entries", "Pictures held, incomplete ones included.")
        self._shown = {"hits": 0, "misses": 0, "evictions": 0}

        for outcome in OUTCOMES:  # so that a rate is 0 and not missing before the first
            self._questions.labels(outcome)
        for form in FORMS:
            self._pictures.labels(form)
            self._received.labels(form)

    # what has happened

    def question(self, ended: EndedQuestion) -> None:
        self._questions.labels(ended.outcome).inc()
        self._prompt_tokens.labels("visual").inc(ended.visual_tokens)
        self._prompt_tokens.labels("text").inc(ended.prompt_tokens - ended.visual_tokens)
        self._new_tokens.labels("thinking").inc(ended.thinking_tokens)
        self._new_tokens.labels("answer").inc(ended.new_tokens - ended.thinking_tokens)
        self._total.observe(ended.total_s)
        if ended.prefill_s:  # else the engine never began
            self._views_wait.observe(ended.views_s)
            self._queue_wait.observe(ended.queue_s)
            self._prefill.observe(ended.prefill_s)
        if ended.first_token_s and not ended.samples:  # else it is how long the samples took
            self._first_token.observe(ended.first_token_s)
        if ended.tokens_per_s:
            self._tokens_per_s.observe(ended.tokens_per_s)

    def error(self, scope: Scope, error: CallError) -> None:
        self._errors.labels(scope, Status(error.status).name, error.reason).inc()

    def session(self, seconds: float) -> None:
        self._sessions_ended.inc()
        self._session_seconds.inc(seconds)

    def picture(self, form: Form) -> None:
        self._pictures.labels(form).inc()

    def received(self, form: Form, n_bytes: int) -> None:
        self._received.labels(form).inc(n_bytes)

    def view(self, decode_s: float) -> None:
        self._view_decode.observe(decode_s)

    def counting(self, write: Write) -> Write:
        async def counted(response: pb.SessionResponse) -> None:
            await write(response)
            self._sent.inc(response.ByteSize())

        return counted

    # what is

    def read(self, now: Watched) -> None:
        """Set the gauges. Call it before the registry is read."""
        self._ready.set(now.ready)
        self._engine_up.set(now.engine_up)
        self._sessions.set(now.sessions)
        self._sessions_allowed.set(now.sessions_allowed)
        self._read_cache(now.pictures)
        if now.admission is not None:
            self._admitted.set(now.admission.running)
            self._admission_waiting.set(now.admission.waiting)
        if now.backend is not None:
            engine = now.backend.engine
            self._build.labels(self._version, now.backend.model_id, engine.name).set(1)
            load = engine.load()
            self._running.set(load.running)
            self._running_allowed.set(load.running_allowed)
            self._waiting.set(load.waiting)
            self._waiting_allowed.set(load.waiting_allowed)
            self._kv_bytes.set(load.cache_bytes)
            self._kv_allowed.set(load.cache_bytes_allowed)

    def _read_cache(self, cache: PictureCache) -> None:
        for name, shown in (("hits", self._hits), ("misses", self._misses), ("evictions", self._evictions)):
            count = getattr(cache, name)
            shown.inc(count - self._shown[name])
            self._shown[name] = count
        self._utilization.set(cache.size_bytes / cache.capacity_bytes)
        self._cache_bytes.set(cache.size_bytes)
        self._entries.set(len(cache))
