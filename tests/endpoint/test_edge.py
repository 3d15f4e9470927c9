"""The edge server behind the endpoint: lost, busy, slow, full, thinking; and clients that leave before an answer."""

from __future__ import annotations

import asyncio
import gc
import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from device_client.endpoint.messages import Media
from device_client.endpoint.slots import RUNNING
from device_client.fake import FakeEncoder
from edge_server.engine.fake import FakeEngine
from edge_server.fake import fake_backend, prompt_bytes
from edge_server.reasoning import ThinkTokens
from tests.e2e.conftest import ServerThread
from tests.endpoint.conftest import WAIT_S, Begin, EndpointThread, client
from tests.endpoint.requests import CHAT, NUMBER, as_png, ask, chunks, streamed

THINK_TOKENS = ThinkTokens(begin=ord("<"), end=ord(">"))
BeginEdge = Callable[..., ServerThread]


@pytest.fixture
def begin_edge() -> Iterator[BeginEdge]:
    """Start edge servers; they are stopped after the test, unless it has done so."""
    made: list[ServerThread] = []

    def start(backend: Any = None, **settings: Any) -> ServerThread:
        made.append(ServerThread(backend, **settings))
        return made[-1]

    yield start
    for one in made:
        if not one.loop.is_closed():
            one.stop()


def fake(begin: Begin, edge: ServerThread, **options: Any) -> EndpointThread:
    """Start an endpoint whose device fits a fake edge server."""
    return begin(edge.address, encoder=FakeEncoder(model_id="fake-model", codec_id="fake-codec"), **options)


def post(endpoint: EndpointThread, **fields: Any) -> httpx2.Response:
    with client(endpoint) as http:
        return http.post(CHAT, json={"messages": [{"role": "user", "content": "?"}], **fields})


def refused(response: httpx2.Response, status: int, code: str) -> None:
    assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text


def test_a_lost_edge_server_loses_no_picture(begin: Begin, begin_edge: BeginEdge) -> None:
    edge = begin_edge()
    endpoint = begin(edge.address)
    with client(endpoint) as http:
        first = http.post(CHAT, json=ask()).json()
        assert first["choices"][0]["message"]["content"] == NUMBER
        port = edge.running.port
        edge.stop()
        lost = http.post(CHAT, json=ask())
        refused(lost, 503, "edge_unavailable")
        assert int(lost.headers["retry-after"]) >= 1
        assert http.get("/health").status_code == 200 and http.get("/v1/models").status_code == 200
        begin_edge(port=port)
        again = http.post(CHAT, json=ask()).json()
    assert again["choices"][0]["message"]["content"] == NUMBER
    cost = again["usage"]["tofc"]
    assert cost["picture_bytes"] == first["usage"]["tofc"]["picture_bytes"]  # the new server does not have it
    assert (cost["cached"], cost["tower_ms"], len(endpoint.towers)) == (1, 0, 1)


def test_an_edge_server_that_was_never_there_is_told(begin: Begin, free_port: int) -> None:
    endpoint = begin(f"127.0.0.1:{free_port}")
    refused(post(endpoint), 503, "edge_unavailable")
    with client(endpoint) as http:
        (model,) = http.get("/v1/models").json()["data"]
    assert "max_model_len" not in model  # nobody has told it


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_leaves_ends_its_answer_on_the_edge_server(
    begin: Begin, begin_edge: BeginEdge, stream: bool, begun: bool
) -> None:
    gate = asyncio.Event()
    engine = FakeEngine(lambda _: list(b"an answer of many tokens" * 40), gate=gate)
    edge = begin_edge(fake_backend(engine=engine))
    endpoint = fake(begin, edge)
    host, _, port = endpoint.address.rpartition(":")
    body = json.dumps({"messages": [{"role": "user", "content": "?"}], "stream": stream}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {endpoint.address}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as connection:
        connection.sendall(head.encode() + body)
        edge.run(engine.busy.wait())
        if begun:  # some tokens, then it waits again
            edge.run(_some_tokens(engine, gate))
            if stream:
                assert b"200 OK" in connection.recv(100)
    edge.run(asyncio.wait_for(engine.idle.wait(), WAIT_S))
    assert engine.cancelled == 1
    with client(endpoint) as http:
        assert 'outcome="gone"} 1.0' in http.get("/metrics").text
        edge.loop.call_soon_threadsafe(gate.set)
        assert (
            http.post(CHAT, json={"messages": [{"role": "user", "content": "?"}], "max_tokens": 2}).status_code == 200
        )


async def _some_tokens(engine: FakeEngine, gate: asyncio.Event) -> None:
    gate.set()
    while engine.steps < 5:
        await asyncio.sleep(0)
    gate.clear()


def test_a_busy_edge_server_says_when_to_come_back(begin: Begin, begin_edge: BeginEdge) -> None:
    gate = asyncio.Event()
    edge = begin_edge(fake_backend(engine=FakeEngine(lambda _: [65], queue=1, gate=gate)), engine_queue=1)
    endpoint = fake(begin, edge, session={"wait_s": 0.0})
    answers: list[httpx2.Response] = []
    waiting = [threading.Thread(target=lambda: answers.append(post(endpoint))) for _ in range(2)]
    for one in waiting:
        one.start()

    async def full() -> None:
        while (admission := edge.running._admission) is None or not (admission.running and admission.waiting):
            await asyncio.sleep(0)

    edge.run(asyncio.wait_for(full(), WAIT_S))
    response = post(endpoint)
    refused(response, 429, "server_busy")
    assert int(response.headers["retry-after"]) >= 1
    edge.loop.call_soon_threadsafe(gate.set)
    for one in waiting:
        one.join(WAIT_S)
    assert [one.status_code for one in answers] == [200, 200]


def test_a_busy_endpoint_says_when_to_come_back(begin: Begin, begin_edge: BeginEdge) -> None:
    gate = asyncio.Event()
    engine = FakeEngine(lambda _: [65], gate=gate)
    edge = begin_edge(fake_backend(engine=engine))
    endpoint = fake(begin, edge, requests=1)
    answers: list[httpx2.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(post(endpoint)))
    waiting.start()
    edge.run(engine.busy.wait())
    response = post(endpoint)
    refused(response, 429, "endpoint_busy")
    assert response.headers["retry-after"] == "1"
    edge.loop.call_soon_threadsafe(gate.set)
    waiting.join(WAIT_S)
    assert answers[0].json()["choices"][0]["message"]["content"] == "A"


def test_bodies_count_until_their_pictures_are_opened(begin: Begin, begin_edge: BeginEdge) -> None:
    gate = asyncio.Event()
    engine = FakeEngine(lambda _: [65], gate=gate)
    edge = begin_edge(fake_backend(engine=engine))
    endpoint = fake(begin, edge, body_mib=1)
    small = [threading.Thread(target=post, args=(endpoint,)) for _ in range(RUNNING)]
    for one in small:
        one.start()
    edge.run(asyncio.wait_for(_asked(engine, RUNNING), WAIT_S))  # all turns are taken
    statuses: queue.SimpleQueue[int] = queue.SimpleQueue()

    def large() -> None:
        statuses.put(post(endpoint, metadata={"": "x" * 900_000}).status_code)

    waiting = [threading.Thread(target=large) for _ in range(6)]
    for one in waiting:
        one.start()
    assert statuses.get(timeout=WAIT_S) == statuses.get(timeout=WAIT_S) == 429  # four are held
    edge.loop.call_soon_threadsafe(gate.set)
    for one in (*small, *waiting):
        one.join(WAIT_S)
    assert [statuses.get() for _ in range(4)] == [200] * 4
    assert post(endpoint, metadata={"": "x" * 900_000}).status_code == 200


def test_the_text_of_a_picture_is_dropped_before_its_answer(begin: Begin, begin_edge: BeginEdge) -> None:
    gate = asyncio.Event()
    engine = FakeEngine(lambda _: [65], gate=gate)
    edge = begin_edge(fake_backend(engine=engine))
    endpoint = fake(begin, edge)
    body = ask(url=as_png(77))
    asking = threading.Thread(target=post, args=(endpoint,), kwargs=body)
    asking.start()
    edge.run(asyncio.wait_for(_asked(engine, 1), WAIT_S))
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is Media and one.url == as_png(77)]
    edge.loop.call_soon_threadsafe(gate.set)
    asking.join(WAIT_S)


async def _asked(engine: FakeEngine, questions: int) -> None:
    while len(engine.prompts) < questions:
        await asyncio.sleep(0)


def test_too_little_time_is_told(begin: Begin, begin_edge: BeginEdge) -> None:
    engine = FakeEngine(lambda _: [65], gate=asyncio.Event())
    edge = begin_edge(fake_backend(engine=engine))
    refused(post(fake(begin, edge), timeout=0.05), 504, "timeout")
    edge.run(asyncio.wait_for(engine.idle.wait(), WAIT_S))


def test_too_long_a_prompt_is_told(begin: Begin, begin_edge: BeginEdge) -> None:
    edge = begin_edge(fake_backend(engine=FakeEngine(lambda _: [65], max_positions=20)))
    endpoint = fake(begin, edge)
    refused(post(endpoint, messages=[{"role": "user", "content": "x" * 30}]), 400, "context_length_exceeded")
    with client(endpoint) as http:
        assert http.get("/v1/models").json()["data"][0]["max_model_len"] == 20


def test_an_error_in_the_middle_of_a_stream_is_an_event(begin: Begin, begin_edge: BeginEdge) -> None:
    def sample(prompt: Any, sampling: Any) -> list[Any]:
        return [*b"half of", RuntimeError("broken")]

    edge = begin_edge(fake_backend(engine=FakeEngine(lambda _: [], sample=sample)))
    found = chunks(post(fake(begin, edge), stream=True).text)
    assert found[-1]["error"]["code"].startswith("edge_") and streamed(found[:-1]) == "half of"


def thinker(answer: Callable[[bytes], bytes]) -> tuple[Any, FakeEngine]:
    engine = FakeEngine(lambda prompt: list(answer(prompt_bytes(prompt))))
    return fake_backend(engine=engine, think_tokens=THINK_TOKENS), engine


def test_thinking_is_apart_and_does_not_count(begin: Begin, begin_edge: BeginEdge) -> None:
    backend, _ = thinker(lambda _: b"<let me see>a cat, I think")
    endpoint = fake(begin, begin_edge(backend))
    response = post(endpoint, max_tokens=5).json()
    assert response["choices"][0]["message"]["content"] == "a cat"
    assert response["choices"][0]["message"]["reasoning_content"] == "let me see"
    assert response["usage"]["completion_tokens_details"]["reasoning_tokens"] == len("<let me see>")
    assert response["usage"]["completion_tokens"] == len("<let me see>") + 5
    found = chunks(post(endpoint, max_tokens=5, stream=True).text)
    thought = "".join(chunk["choices"][0]["delta"].get("reasoning_content", "") for chunk in found)
    assert (thought, streamed(found)) == ("let me see", "a cat")
    hidden = post(endpoint, max_tokens=5, include_reasoning=False).json()
    assert "reasoning_content" not in hidden["choices"][0]["message"]


@pytest.mark.parametrize(
    ("fields", "thought"),
    [
        ({"thinking_budget": 4}, "hmh"),
        ({"thinking_token_budget": 4}, "hmh"),
        ({"chat_template_kwargs": {"thinking_budget": 4}}, "hmh"),
        ({}, "hmhmhmh"),  # the endpoint's default, 8
    ],
)
def test_thinking_has_a_budget(begin: Begin, begin_edge: BeginEdge, fields: dict[str, Any], thought: str) -> None:
    backend, engine = thinker(lambda prompt: b"yes, it is" if prompt.endswith(b">") else b"<" + b"hm" * 99)
    response = post(fake(begin, begin_edge(backend), thinking_budget=8), max_tokens=3, **fields).json()
    assert response["choices"][0]["message"] == {"role": "assistant", "content": "yes", "reasoning_content": thought}
    assert engine.params[-1][0].max_tokens == 3


def test_thinking_can_be_left_out_of_a_prompt_that_begins_it(begin: Begin, begin_edge: BeginEdge) -> None:
    backend, _ = thinker(lambda prompt: b"yes" if prompt.endswith(b">") else b"hm" * 99)
    messages = [{"role": "user", "content": "?<"}]
    response = post(
        fake(begin, begin_edge(backend)), messages=messages, chat_template_kwargs={"enable_thinking": False}
    )
    assert response.json()["choices"][0]["message"]["content"] == "yes"


def test_an_answer_that_would_be_taken_back_ends_with_an_error(begin: Begin, begin_edge: BeginEdge) -> None:
    backend, _ = thinker(lambda _: b"why>42")
    endpoint = fake(begin, begin_edge(backend))
    found = chunks(post(endpoint, stream=True).text)
    assert found[-1]["error"]["code"] == "answer_restarted"
    assert post(endpoint).json()["choices"][0]["message"]["content"] == "42"


def test_the_rate_counts_what_arrives_after_the_first_token(begin: Begin, begin_edge: BeginEdge) -> None:
    engine = FakeEngine(lambda _: list(b"<let me see>a cat, I think"), step_s=0.005)
    edge = begin_edge(fake_backend(engine=engine, think_tokens=THINK_TOKENS))
    endpoint = fake(begin, edge)
    for fields, tokens in (({}, len("<let me see>") + 5), ({"include_reasoning": False}, 5)):
        times = post(endpoint, max_tokens=5, **fields).json()["timings"]
        assert round(times["predicted_per_second"] * times["predicted_ms"] / 1e3, 1) == tokens - 1
    voted = post(endpoint, max_tokens=5, vote=2)
    assert voted.status_code == 200 and "predicted_per_second" not in voted.json()["timings"]


def test_bytes_of_choices_at_one_time_are_counted_once(begin: Begin, begin_edge: BeginEdge) -> None:
    edge = begin_edge(fake_backend(engine=FakeEngine(lambda _: [65])))
    endpoint = fake(begin, edge)
    response = post(endpoint, messages=[{"role": "user", "content": "long " * 1000}], n=8)
    traffic = endpoint.session.traffic() if endpoint.session is not None else None
    if traffic is None:
        pytest.skip("this kernel does not count bytes")
    assert 0 < response.json()["usage"]["tofc"]["bytes_up"] <= traffic.up


class _Unloadable(FakeEncoder):
    def load(self) -> None:
        raise RuntimeError("/home/somebody/model is broken")


def test_a_probe_does_not_learn_why_the_model_is_broken(
    begin: Begin, begin_edge: BeginEdge, caplog: pytest.LogCaptureFixture
) -> None:
    edge = begin_edge(fake_backend(engine=FakeEngine(lambda _: [65])))
    endpoint = begin(edge.address, encoder=_Unloadable(model_id="fake-model", codec_id="fake-codec"))
    with client(endpoint) as http:
        assert http.post(CHAT, json=ask()).status_code == 500
        caplog.clear()
        response = http.get("/health")
    refused(response, 500, "encoder_failed")
    assert "somebody" not in response.text and not caplog.records
