"""One trace of a question, from the device's tower to the server's last token; and none without being asked for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

import edge_server.server
import tofc.tracing
from device_client.encoder import TowerEncoder
from device_client.link import Target
from device_client.sampling import Sampling
from device_client.session import Session
from tests.e2e.conftest import PICTURES, ServerThread
from tofc import Client
from tofc.errors import LimitError, UsageError
from tofc.tracing import OFF, SdkTracer, open_tracer

QUESTION = "what number is on the sign?"


def recording(**settings: Any) -> tuple[SdkTracer, InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(**settings)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return SdkTracer(provider), exporter


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ServerThread, InMemorySpanExporter]]:
    """A server whose spans stay in memory."""
    tracer, exporter = recording()
    monkeypatch.setattr(edge_server.server, "open_tracer", lambda *_, **__: tracer)
    server = ServerThread()
    yield server, exporter
    server.stop()


def picture() -> Path:
    return sorted(PICTURES.glob("*.jpg"))[0]


async def ask(server: ServerThread, encoder: TowerEncoder, tracer: Any, **asking: Any) -> None:
    async with Session(Target(address=server.address), encoder, tracer=tracer) as session:
        await session.ask([session.open(picture())], QUESTION, **asking).result()


def named(spans: Any) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans}


async def test_a_question_is_one_trace_over_both_machines(
    traced: tuple[ServerThread, InMemorySpanExporter], encoder: TowerEncoder
) -> None:
    (server, server_spans), (tracer, device_spans) = traced, recording()
    await ask(server, encoder, tracer)
    server.run(server.running.service.wait_until_empty())
    device, edge = named(device_spans.get_finished_spans()), named(server_spans.get_finished_spans())
    assert set(device) == {"ask", "views", "tower", "encode", "upload", "answer"}
    assert set(edge) == {"question", "decode", "wait", "queue", "prefill", "generate"}
    assert len({span.context.trace_id for span in [*device.values(), *edge.values()]}) == 1
    asked, answered = device.pop("ask"), edge.pop("question")
    assert asked.parent is None and answered.parent.span_id == asked.context.span_id
    assert {span.parent.span_id for span in device.values()} == {asked.context.span_id}
    assert {span.parent.span_id for span in edge.values()} == {answered.context.span_id}
    for outer, parts in ((asked, device), (answered, edge)):
        for name, part in parts.items():
            if name != "decode":  # its view may have come before the question
                assert outer.start_time <= part.start_time <= part.end_time <= outer.end_time + 1e6, name
    assert edge["wait"].end_time <= edge["prefill"].end_time == edge["generate"].start_time
    assert device["tower"].end_time == device["encode"].start_time
    assert answered.attributes["tofc.outcome"] == "stop"
    assert edge["generate"].attributes["tofc.new_tokens"] == answered.attributes["tofc.new_tokens"] >= 1
    assert device["upload"].attributes["tofc.views"] == 1
    texts = [str(span.to_json()) for span in [asked, answered, *device.values(), *edge.values()]]
    assert not any("sign" in text for text in texts)  # neither the question nor the answer


async def test_a_failed_question_says_why(
    traced: tuple[ServerThread, InMemorySpanExporter], encoder: TowerEncoder
) -> None:
    (server, _), (tracer, device_spans) = traced, recording()
    with pytest.raises(LimitError):
        await ask(server, encoder, tracer, sampling=Sampling(max_tokens=100_000))
    (span,) = device_spans.get_finished_spans()
    assert span.status.description == "LIMIT_EXCEEDED" and not span.status.is_ok


async def test_a_server_that_traces_serves_devices_that_do_not(
    traced: tuple[ServerThread, InMemorySpanExporter], encoder: TowerEncoder
) -> None:
    server, server_spans = traced
    await ask(server, encoder, OFF)
    server.run(server.running.service.wait_until_empty())
    assert named(server_spans.get_finished_spans())["question"].parent is None


async def test_a_device_that_traces_is_served_by_a_server_that_does_not(
    server: ServerThread, encoder: TowerEncoder
) -> None:
    tracer, device_spans = recording()
    await ask(server, encoder, tracer)
    assert "ask" in named(device_spans.get_finished_spans())


@pytest.mark.parametrize("traceparent", ["nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "0" * 10_000])
def test_a_trace_context_that_is_none_starts_a_trace(traceparent: str) -> None:
    tracer, spans = recording()
    tracer.start("question", traceparent=traceparent).end()
    (span,) = spans.get_finished_spans()
    assert span.parent is None


def test_what_is_not_sampled_is_not_sent() -> None:
    tracer, _ = recording(sampler=ParentBased(ALWAYS_OFF))
    assert tracer.start("ask").traceparent == ""
    assert OFF.start("ask").traceparent == ""


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """What receives OTLP."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            (service,) = (one.value.string_value for one in resource.resource.attributes if one.key == "service.name")
            self.found += [(service, span.name) for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


def test_spans_arrive_at_the_collector_that_the_environment_names(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector, running = Collector(), grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, running)
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    with Client(server.address) as client:
        client.picture(picture()).ask(QUESTION)
    running.stop(None).wait()
    assert {("tofc", "ask"), ("tofc", "answer")} <= set(collector.found)


def test_traces_are_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tofc.tracing.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert open_tracer("any") is OFF


def test_without_opentelemetry_the_option_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(UsageError, match=r"--trace: traces need opentelemetry.*install.*tracing"):
        open_tracer("any", wanted=True)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    warnings: list[str] = []
    assert open_tracer("any", warn=warnings.append) is OFF
    assert len(warnings) == 1 and "no traces are sent" in warnings[0]
