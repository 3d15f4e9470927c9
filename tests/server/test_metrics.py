"""What /metrics, /livez and /readyz say, asked over HTTP of a server that devices use at the same time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge_server import monitoring_port
from edge_server.engine.fake import FakeEngine
from edge_server.fake import fake_backend
from edge_server.observer import EndedQuestion
from edge_server.server import RunningServer, start
from edge_server.settings import ServerSettings
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import ANSWERED, RawClient, until, within
from tofc.errors import UnavailableError, UsageError
from tofc.rpc.channel import dial
from tofc.v1 import tofc_pb2 as pb

Sample = tuple[str, frozenset[tuple[str, str]]]


def fetch(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=ANSWERED) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def get(server: RunningServer, path: str) -> tuple[int, str]:
    assert server.monitoring is not None
    return await asyncio.to_thread(fetch, server.monitoring.address, path)


class Scrape:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        families = list(text_string_to_metric_families(text))
        self.samples: dict[Sample, float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self.samples[name, frozenset(labels.items())]


async def scrape(server: RunningServer) -> Scrape:
    status, text = await get(server, "/metrics")
    assert status == 200, text
    return Scrape(text)


async def test_a_question_is_counted_with_its_tokens_times_bytes_and_pictures(serve: Serve, connect: Connect) -> None:
    server = await serve(metrics_port=0)
    client = connect(server)
    await client.hello()
    await client.picture(1, "a")
    await client.view(1, 0, b"packet")
    await client.taken(1, 0)
    await client.ask(1, "what?", refs=(1,))
    text, done = await client.answer(1)
    found = await scrape(server)
    assert found("tofc_questions_total", outcome="stop") == 1
    assert found("tofc_questions_total", outcome="error") == 0
    assert found("tofc_new_tokens_total", kind="answer") == len(text) == done.usage.new_tokens
    assert found("tofc_prompt_tokens_total", kind="visual") == len(b"packet")
    assert found("tofc_prompt_tokens_total", kind="text") == done.usage.prompt_tokens - len(b"packet")
    assert found("tofc_received_bytes_total", form="features") == len(b"packet")
    assert found("tofc_pictures_total", form="features") == 1
    assert found("tofc_sent_bytes_total") >= len(text)
    for name in ("queue_wait", "views_wait", "prefill", "first_token", "question", "view_decode"):
        assert found(f"tofc_{name}_seconds_count") == 1, name
    assert found("tofc_question_seconds_sum") == pytest.approx(done.timing.total_us / 1e6, rel=0.5, abs=0.01)
    assert found("tofc_answer_tokens_per_second_count") == 1
    assert found("tofc_sessions") == 1 and found("tofc_sessions_limit") == 64
    assert found("tofc_ready") == 1 and found("tofc_engine_up") == 1
    build = {name: dict(labels) for name, labels in found.samples if name == "tofc_build_info"}
    assert build["tofc_build_info"]["engine"] == "fake" and build["tofc_build_info"]["model"] == "fake-model"
    await client.end()
    assert (await scrape(server))("tofc_sessions_ended_total") == 1


@pytest.mark.parametrize(("reasoning", "speeds"), [(pb.Reasoning(rounds=[3]), 1), (pb.Reasoning(vote=3), 0)])
async def test_samples_count_as_tokens_but_not_for_the_speed_of_an_answer(
    reasoning: pb.Reasoning, speeds: int, serve: Serve, connect: Connect
) -> None:
    server = await serve(metrics_port=0)
    client = connect(server)
    await client.hello()
    await client.ask(1, "what?", reasoning=reasoning)
    while (response := await client.receive()).WhichOneof("response") != "done":
        assert response.WhichOneof("response") in ("progress", "token")
    found = await scrape(server)
    assert found("tofc_new_tokens_total", kind="answer") == response.done.usage.new_tokens > 3 * len("what?") - 1
    assert found("tofc_first_token_seconds_count") == 0
    assert found("tofc_answer_tokens_per_second_count") == speeds


def test_the_speed_of_an_answer_is_that_of_its_own_tokens() -> None:
    ended = EndedQuestion(
        outcome="stop",
        reason="stop",
        prompt_tokens=5,
        visual_tokens=0,
        new_tokens=1011,
        thinking_tokens=0,
        samples=10,
        answer_tokens=11,
        views_s=0.0,
        queue_s=0.0,
        prefill_s=1.0,
        first_token_s=4.0,
        total_s=6.0,
    )
    assert ended.tokens_per_s == 5.0
    assert replace(ended, answer_tokens=0).tokens_per_s == 0.0


async def test_the_cache_of_pictures_has_the_names_that_dynamo_gives_its_own(serve: Serve, connect: Connect) -> None:
    server = await serve(metrics_port=0, cache_bytes=6000)  # two pictures of 2048 bytes and what they hold
    client = connect(server)
    await client.hello()
    for ref, name in enumerate("aabc", 1):
        if not await client.picture(ref, name):
            await client.view(ref, 0, b"x" * 100)
            await client.taken(ref, 0)
        await client.ask(ref, "?", refs=(ref,))
        await client.answer(ref)
    await client.ask(9, "?", refs=(4, 4))
    await client.answer(9)
    found = await scrape(server)
    assert found("embedding_cache_hits_total") == 6 and found("embedding_cache_misses_total") == 0
    assert found("embedding_cache_evictions_total") == 1
    assert found("embedding_cache_entries") == 2
    assert found("embedding_cache_current_bytes") == server.service.pictures.size_bytes
    assert found("embedding_cache_utilization") == server.service.pictures.size_bytes / 6000
    await client.send(asks=[pb.Ask(request=10, question="?", refs=[1])])  # evicted: it must arrive again
    await client.expect("need_picture")
    assert (await scrape(server))("embedding_cache_misses_total") == 1


async def test_refusals_are_counted_by_reason(serve: Serve, connect: Connect) -> None:
    engine = FakeEngine(lambda _: list(b"long"), gate=asyncio.Event())
    server = await serve(fake_backend(engine=engine), metrics_port=0, sessions=1)
    client = connect(server)
    await client.hello()
    await client.ask(1, "?")
    await client.ask(1, "the same number")
    assert (await client.expect("error")).reason == "DUPLICATE_REQUEST"
    assert (await connect(server).expect("error")).reason == "TOO_MANY_SESSIONS"
    await until(lambda: engine.busy.is_set())
    found = await scrape(server)
    assert found("tofc_errors_total", scope="question", status="ALREADY_EXISTS", reason="DUPLICATE_REQUEST") == 1
    refused = {"scope": "session", "status": "RESOURCE_EXHAUSTED", "reason": "TOO_MANY_SESSIONS"}
    assert found("tofc_errors_total", **refused) == 1
    assert found("tofc_engine_running") == 1 and found("tofc_admission_admitted") == 1
    await client.send(cancels=[pb.Cancel(request=1)])
    await client.answer(1)
    found = await scrape(server)
    assert found("tofc_questions_total", outcome="cancelled") == 1
    assert found("tofc_engine_running") == 0 and found("tofc_admission_admitted") == 0


async def test_a_question_that_fails_and_one_whose_session_ends_have_outcomes(serve: Serve, connect: Connect) -> None:
    engine = FakeEngine(lambda _: list(b"long"), gate=asyncio.Event())
    server = await serve(fake_backend(engine=engine), metrics_port=0)
    client = connect(server)
    await client.hello()
    await client.ask(1, "?", deadline_ms=1)
    assert (await client.expect("error")).reason == "DEADLINE_EXCEEDED"
    await client.ask(2, "?")
    await engine.busy.wait()
    client.call.cancel()
    await until(lambda: server.service.sessions == 0)
    found = await scrape(server)
    assert found("tofc_questions_total", outcome="error") == 1
    assert found("tofc_questions_total", outcome="disconnected") == 1


async def test_readiness_follows_the_model_the_engine_and_the_drain_and_liveness_does_not(
    connect: Connect, tmp_path: Path
) -> None:
    engine = FakeEngine(lambda _: list(b"the answer"), gate=(gate := asyncio.Event()))
    loading, loaded = threading.Event(), threading.Event()

    def load(_: ServerSettings) -> object:
        loading.set()
        assert loaded.wait(ANSWERED)
        return fake_backend(engine=engine)

    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    settings = ServerSettings(model=tmp_path, port=0, metrics_port=port)
    starting = asyncio.create_task(start(settings, load))  # type: ignore[arg-type]
    await asyncio.to_thread(loading.wait, ANSWERED)
    address = f"127.0.0.1:{port}"
    status, text = await asyncio.to_thread(fetch, address, "/readyz")
    assert (status, "loading its model" in text) == (503, True)
    assert await asyncio.to_thread(fetch, address, "/livez") == (200, "ok\n")
    assert Scrape((await asyncio.to_thread(fetch, address, "/metrics"))[1])("tofc_ready") == 0
    loaded.set()
    server = await within(starting)
    assert await get(server, "/readyz") == (200, "ok\n")

    engine.die()
    status, text = await get(server, "/readyz")
    assert (status, "engine was lost" in text) == (503, True)
    assert (await scrape(server))("tofc_engine_up") == 0
    engine.revive()
    assert (await get(server, "/readyz"))[0] == 200

    client = connect(server)
    await client.hello()
    await client.ask(1, "?")
    await engine.busy.wait()
    stopping = asyncio.create_task(server.stop(grace_s=ANSWERED))
    await until(lambda: server.service.not_ready)
    status, text = await get(server, "/readyz")
    assert (status, "stopping" in text) == (503, True)
    assert (await get(server, "/livez"))[0] == 200
    assert (await connect(server).expect("error")).reason == "STOPPING"
    gate.set()
    assert (await client.answer(1))[0] == "the answer"  # it was running: the drain lets it finish
    await within(stopping)
    with pytest.raises(urllib.error.URLError):
        await get(server, "/livez")


async def test_a_lost_port_is_not_live(serve: Serve) -> None:
    server = await serve(metrics_port=0)
    assert (await get(server, "/livez"))[0] == 200
    server.watching.cancel()
    await asyncio.wait([server.watching])
    assert await get(server, "/livez") == (503, "the port was lost\n")


async def test_an_event_loop_that_hangs_is_not_live(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring_port, "LOOP_S", 0.05)
    server = await serve(metrics_port=0)
    assert server.monitoring is not None
    answers: list[tuple[int, str]] = []
    asking = threading.Thread(target=lambda: answers.append(fetch(server.monitoring.address, "/livez")))  # type: ignore[union-attr]
    asking.start()
    asking.join(ANSWERED)  # blocks this thread, and so the loop
    assert answers == [(503, "the event loop did not answer within 0.05 s\n")]
    assert (await get(server, "/livez"))[0] == 200


async def test_the_port_has_no_other_paths_and_shows_no_text_of_a_question(serve: Serve, connect: Connect) -> None:
    server = await serve(metrics_port=0)
    client = connect(server)
    await client.hello()
    await client.ask(1, "a secret question")
    await client.answer(1)
    assert (await get(server, "/"))[0] == 404
    assert "secret" not in (await get(server, "/metrics"))[1]


async def test_without_the_option_there_is_no_port(serve: Serve) -> None:
    assert (await serve()).monitoring is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_the_port_listens_where_it_is_told(serve: Serve, host: str) -> None:
    server = await serve(metrics_port=0, metrics_host=host)
    assert server.monitoring is not None and server.monitoring.address.startswith(("127.0.0.1:", "[::1]:"))
    assert (await get(server, "/livez"))[0] == 200


@pytest.mark.parametrize(("host", "warnings"), [("127.0.0.1", 0), ("localhost", 0), ("0.0.0.0", 1)])
async def test_a_metrics_port_beyond_this_machine_is_warned_of(
    serve: Serve, caplog: pytest.LogCaptureFixture, host: str, warnings: int
) -> None:
    await serve(metrics_port=0, metrics_host=host)
    found = [record for record in caplog.records if "neither TLS nor a token" in record.getMessage()]
    assert len(found) == warnings


async def test_a_metrics_port_that_is_taken_is_an_error_that_names_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError, match=rf"127\.0\.0\.1:{port} for metrics .*--metrics-port"):
            await start(ServerSettings(model=tmp_path, port=0, metrics_port=port), lambda _: fake_backend())


def test_a_metrics_port_that_is_no_port_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--metrics-port must be 0 \(any free one\) to 65535, got 70000"):
        ServerSettings(model=Path("unused"), metrics_port=70000)


SERVER = (
    "import asyncio, sys; from edge_server import backend, cli; from edge_server.fake import fake_backend; "
    "from edge_server.engine.fake import FakeEngine; "
    "engine = FakeEngine(lambda prompt: list(b'slow answer' * 20), step_s=0.01); "
    "backend.load = lambda settings: fake_backend(engine=engine); "
    "cli.app(['serve', '--port', '0', '--metrics-port', '0', '--log-format', 'json', '--grace', '20'])"
)


async def test_sigterm_drains_a_server_that_says_so_and_logs_json(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SERVER, stdout=asyncio.subprocess.PIPE, stderr=stderr, env=dict(os.environ)
        )
    try:
        async with asyncio.timeout(3 * ANSWERED):
            assert process.stdout is not None
            address = (await process.stdout.readline()).decode().split()[-1]
            metrics = (await process.stdout.readline()).decode().split()[-1].split("/")[2]
            async with dial(address) as channel:
                client = RawClient(channel)
                await client.hello()
                await client.ask(1, "?")
                first = await client.expect("token")
                process.send_signal(signal.SIGTERM)
                while (ready := await asyncio.to_thread(fetch, metrics, "/readyz"))[0] == 200:
                    pass
                assert ready[0] == 503 and "stopping" in ready[1]
                text, done = await client.answer(1)
                assert first.text + text == "slow answer" * 20
                assert done.finish_reason == pb.FINISH_REASON_STOP
                await client.failed(grpc.StatusCode.UNAVAILABLE, "STOPPING")
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    (question,) = [line for line in lines if "question" in line]
    assert question["session"].startswith("session 1 ") and question["question"] == 1
    assert question["outcome"] == "stop" and question["new_tokens"] == 220 and question["total_s"] > 0
    (session,) = [line for line in lines if "duration_s" in line]
    assert session["questions"] == 1 and session["outcome"] == "STOPPING"
