"""vLLM elsewhere, against a server that speaks its API, answers with nano's own decoder, and fails as scripted."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from transformers import Qwen3ForCausalLM
from typer.testing import CliRunner

from edge_server.backend import load
from edge_server.cli import app
from edge_server.engine import endpoints, engine_check
from edge_server.engine.base import Engine, Finish, Prompt
from edge_server.engine.completion_request import CompletionFormat
from edge_server.engine.fake import FakeEngine
from edge_server.engine.fake_vllm import FakeVllm, Fault
from edge_server.engine.qwen3 import load_qwen3
from edge_server.engine.sampling import SamplingParams
from edge_server.engine.torch_file import STORAGES, save_rows
from edge_server.engine.transformers import TransformersEngine
from edge_server.engine.vllm_remote import VllmRemoteEngine, find_engines
from edge_server.server import start
from edge_server.settings import ServerSettings
from tests.engine.remote import STOP, THINGS, as_prompts, collect, knows_the_probe, nano, prompts, remote_model
from tests.server.raw_client import ANSWERED
from tofc.client import AsyncClient
from tofc.errors import (
    CheckpointError,
    InternalError,
    InvalidRequestError,
    LimitError,
    SecurityError,
    UnavailableError,
    UsageError,
)
from tofc.model.shipped import NANO

EXAMPLE = NANO / "example.jpg"
Serve = Callable[..., Awaitable[FakeVllm]]
Connect = Callable[..., Awaitable[VllmRemoteEngine]]


@pytest.fixture(scope="module")
def decoder() -> Qwen3ForCausalLM:
    return load_qwen3(nano())


@pytest_asyncio.fixture
async def embedded(decoder: Qwen3ForCausalLM) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine(decoder, [STOP], parallel=16, queue=64)
    yield engine
    await engine.stop()


@pytest_asyncio.fixture
async def endless(decoder: Qwen3ForCausalLM) -> AsyncIterator[TransformersEngine]:
    """The decoder without a stop token."""
    engine = TransformersEngine(decoder, [], parallel=16)
    yield engine
    await engine.stop()


@pytest_asyncio.fixture
async def vllm(embedded: TransformersEngine) -> AsyncIterator[Serve]:
    """Start fake servers, of nano's decoder unless another engine is given."""
    servers: list[FakeVllm] = []

    async def begin(engine: Engine = embedded, likeliest: Any = knows_the_probe, **more: Any) -> FakeVllm:
        servers.append(FakeVllm(engine, likeliest, stop_token=STOP, **more))
        await servers[-1].start()
        return servers[-1]

    yield begin
    for server in servers:
        await server.kill()


@pytest_asyncio.fixture
async def remote() -> AsyncIterator[Connect]:
    """Find engines and connect to them."""
    engines: list[VllmRemoteEngine] = []

    async def begin(*servers: FakeVllm, key: str | None = None, **changed: Any) -> VllmRemoteEngine:
        model = remote_model(**changed)
        found = await find_engines([one.url for one in servers], key, model)
        engines.append(VllmRemoteEngine(found, key, model, parallel=16, queue=64))
        return engines[-1]

    yield begin
    for engine in engines:
        await engine.stop()


def slow(answer: list[int], **more: Any) -> FakeEngine:
    return FakeEngine(lambda _: answer, **more)


# the request


@pytest.mark.parametrize("dtype", STORAGES)
def test_rows_are_a_file_of_torch(dtype: str) -> None:
    rows = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    rows[0] = [1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 3e-39, 0]  # halfway between two bfloat16, and subnormal
    found = torch.load(io.BytesIO(save_rows(rows[:, ::-1], dtype)), weights_only=True)
    assert found.dtype is getattr(torch, dtype) and found.is_contiguous()
    assert torch.equal(found, torch.from_numpy(rows[:, ::-1].copy()).to(found.dtype))


async def test_nothing_of_sampling_is_left_to_the_engine(vllm: Serve, remote: Connect) -> None:
    server = await vllm(slow([7]))
    engine = await remote(server)
    one = Prompt(embeds=prompts()[0], client="kitchen", pictures="p")
    await collect(engine.submit(one, SamplingParams(max_tokens=9, temperature=0.5, top_p=0.9, top_k=4, seed=2**64 - 1)))
    (asked,) = server.requests
    assert asked.pop("model") == "fake"
    salt, session = asked.pop("cache_salt"), server.headers[0]["x-session-id"]
    assert asked == {
        **{"prompt": [], "stream": True, "return_token_ids": True, "n": 1, "seed": 2**63 - 1},
        **{"max_tokens": 9, "min_tokens": 0, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.0},
        **{"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
        **{"stop": [], "stop_token_ids": [STOP], "ignore_eos": True, "skip_special_tokens": False},
    }
    others = [Prompt(embeds=one.embeds, client=client, pictures="p") for client in ("garden", "kitchen")]
    for other in others:
        await collect(engine.submit(other, SamplingParams(max_tokens=1)))
    assert server.requests[1]["cache_salt"] != salt == server.requests[2]["cache_salt"]
    assert server.headers[1]["x-session-id"] != session == server.headers[2]["x-session-id"]
    assert "kitchen" not in salt + session


# answers


async def test_greedy_answers_equal_those_of_the_embedded_engine(
    vllm: Serve, remote: Connect, embedded: TransformersEngine
) -> None:
    engine = await remote(await vllm())
    params = SamplingParams(max_tokens=12)
    wanted = [await collect(embedded.submit(one, params)) for one in as_prompts(prompts())]
    assert [await collect(engine.submit(one, params)) for one in as_prompts(prompts())] == wanted
    assert await asyncio.gather(*(collect(engine.submit(one, params)) for one in as_prompts(prompts()))) == wanted
    assert len(wanted) >= 50 and len(set(map(tuple, wanted))) > 5
    assert not any(STOP in one for one in wanted)


async def test_samples_come_from_one_request_and_have_their_own_seeds(
    vllm: Serve, remote: Connect, embedded: TransformersEngine
) -> None:
    server = await vllm()
    engine = await remote(server)
    (one,) = as_prompts(prompts()[:1])
    for seed in (9, 2**64 - 2):
        params = SamplingParams(max_tokens=12, temperature=2.0, seed=seed)
        wanted = [await collect(each) for each in embedded.submit_samples(one, params, 5)]
        found = await asyncio.gather(*map(collect, engine.submit_samples(one, params, 5)))
        assert found == wanted and len(set(map(tuple, wanted))) > 1
    assert sorted(asked["n"] for asked in server.requests) == [2, 3, 5]  # vLLM's seeds do not begin again


async def test_greedy_samples_are_asked_once(vllm: Serve, remote: Connect) -> None:
    server = await vllm(slow([7, 8]))
    engine = await remote(server)
    found = engine.submit_samples(Prompt(embeds=prompts()[0]), SamplingParams(max_tokens=9), 3)
    assert await asyncio.gather(*map(collect, found)) == [[7, 8]] * 3
    assert {each.finish for each in found} == {Finish.STOP}
    assert [asked["n"] for asked in server.requests] == [1]


async def test_an_answer_ends_with_its_tokens_or_the_models_positions(vllm: Serve, remote: Connect) -> None:
    server = await vllm(slow([7] * 99), max_positions=len(prompts()[0]) + 3)
    engine = await remote(server)
    for asked, given in ((2, 2), (50, 3)):
        generation = engine.submit(Prompt(embeds=prompts()[0]), SamplingParams(max_tokens=asked))
        assert await collect(generation) == [7] * given
        assert generation.finish is Finish.LENGTH
        assert generation.prefill_ms > 0


async def test_closing_an_answer_frees_the_engine(vllm: Serve, remote: Connect) -> None:
    slow_engine = slow([7] * 9, gate=asyncio.Event())
    server = await vllm(slow_engine)
    engine = await remote(server)
    one, other = engine.submit_samples(Prompt(embeds=prompts()[0]), SamplingParams(max_tokens=9, temperature=1.0), 2)
    await slow_engine.busy.wait()
    assert engine.load().waiting == 2
    await one.aclose()
    assert slow_engine.busy.is_set()  # the other one is still wanted
    await other.aclose()
    async with asyncio.timeout(ANSWERED):
        await slow_engine.idle.wait()
    assert slow_engine.cancelled == 2
    assert (engine.load().running, engine.load().waiting) == (0, 0)


async def test_a_temperature_that_vllm_does_not_take_is_refused(vllm: Serve, remote: Connect) -> None:
    engine = await remote(await vllm(slow([7])))
    with pytest.raises(InvalidRequestError, match=r"temperature must be 0 .greedy. to 2 on this server.* got 2\.5"):
        engine.submit(Prompt(embeds=prompts()[0]), SamplingParams(max_tokens=1, temperature=2.5))


async def test_a_full_engine_refuses(vllm: Serve, remote: Connect) -> None:
    engine = await remote(await vllm(slow([7], gate=asyncio.Event(), queue=1000)))
    one = Prompt(embeds=prompts()[0])
    for _ in range(5):
        engine.submit_samples(one, SamplingParams(max_tokens=1, temperature=1.0), 16)
    with pytest.raises(LimitError, match="80 questions are running or waiting") as refused:
        engine.submit(one, SamplingParams(max_tokens=1))
    assert refused.value.reason == "ENGINE_BUSY"


# faults


async def test_answers_that_break_off_are_continued_elsewhere_and_nothing_is_said_twice(
    vllm: Serve, remote: Connect, endless: TransformersEngine
) -> None:
    first, second = await vllm(endless), await vllm(endless)
    engine = await remote(first, second, form=CompletionFormat(dtype="float32", stop_tokens=[]))
    params = SamplingParams(max_tokens=40)
    asked = as_prompts(prompts()[:8])
    wanted = [await collect(endless.submit(one, params)) for one in asked]
    for server in (first, second):
        server.faults += [Fault(after=3) for _ in range(2)]
    found = await asyncio.gather(*(collect(engine.submit(one, params)) for one in asked))
    assert found == wanted
    continued = [one["max_tokens"] for one in [*first.requests, *second.requests] if one["max_tokens"] < 40]
    assert len(continued) == 4 and max(continued) == 37


async def test_samples_that_break_off_are_continued_each_from_its_own_tokens(vllm: Serve, remote: Connect) -> None:
    letters = deque("abcdefgh")
    server = await vllm(FakeEngine(lambda prompt: [ord(letters.popleft())] * 9))
    engine = await remote(server)
    server.faults.append(Fault(after=4))
    found = engine.submit_samples(Prompt(embeds=prompts()[0]), SamplingParams(max_tokens=9, temperature=1.0), 2)
    said = await asyncio.gather(*map(collect, found))
    assert [len(one) for one in said] == [9, 9]
    assert [(one["n"], one["max_tokens"]) for one in server.requests] == [(2, 9), (1, 7), (1, 7)]
    first, *rest = (one["seed"] for one in server.requests)
    assert first == 0 and sorted(rest) == [0, 1]  # those two are asked at once: either may arrive first


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=503),
        Fault(status=429),
        Fault(then="end"),
        Fault(event='{"error": {"message": "EngineCore encountered an issue.", "code": 500}}', then="end"),
        Fault(event='{"choices": [{"index": 0, "token_ids": [], "finish_reason": "abort"}]}'),
    ],
)
async def test_another_engine_is_asked(vllm: Serve, remote: Connect, fault: Fault) -> None:
    servers = [await vllm(slow([7, 8, 9])) for _ in range(2)]
    engine = await remote(*servers)
    for server in servers:
        server.faults.append(fault)  # so that the first one asked fails, and then the other one does
    assert await collect(engine.submit(Prompt(embeds=prompts()[0]), SamplingParams(max_tokens=9))) == [7, 8, 9]
    assert [len(server.requests) for server in servers] in ([1, 2], [2, 1])


NONSENSE = {
    "an event that cannot be read": '{"choices": [{"ind',
    "the token 853, the vocabulary has 853": '{"choices": [{"index": 0, "token_ids": [853]}]}',
    "the token -1, the": '{"choices": [{"index": 0, "token_ids": [-1]}]}',
    "the token nan, the": '{"choices": [{"index": 0, "token_ids": [NaN]}]}',
    "tokens of sample 1, 1 were asked for": '{"choices": [{"index": 1, "token_ids": [7]}]}',
    "no token_ids in an event": '{"choices": [{"index": 0, "text": "seven"}]}',
    "more than the 3 tokens": '{"choices": [{"index": 0, "token_ids": [7, 7, 7]}]}',
    "an error in the stream: too long": '{"error": {"message": "too long", "code": 400}}',
}


@pytest.mark.parametrize("said", NONSENSE)
async def test_an_engine_that_answers_nonsense_is_reported(
    vllm: Serve, remote: Connect, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = await vllm(slow([7, 8, 9]))
    engine = await remote(server)
    server.faults.append(Fault(after=1, event=NONSENSE[said]))
    generation = engine.submit(Prompt(embeds=prompts()[0]), SamplingParams(max_tokens=3))
    with pytest.raises(InternalError, match="the engine that runs the model failed") as failed:
        await collect(generation)
    assert failed.value.reason == "ENGINE_FAILED" and str(server.port) not in failed.value.message
    assert said in caplog.text
    assert await collect(engine.submit(Prompt(embeds=prompts()[0]), SamplingParams(max_tokens=3))) == [7, 8, 9]


async def test_a_request_that_breaks_every_engine_is_given_up(vllm: Serve, remote: Connect) -> None:
    servers = [await vllm(slow([7])) for _ in range(5)]
    engine = await remote(*servers)
    for server in servers:
        server.faults += [Fault() for _ in range(9)]
    with pytest.raises(InternalError):
        await collect(engine.submit(Prompt(embeds=prompts()[0]), SamplingParams(max_tokens=3)))
    assert sorted(len(server.requests) for server in servers) == [0, 0, 1, 1, 1]
    alone = await remote(servers[0])
    servers[0].requests.clear()
    with pytest.raises(InternalError):
        await collect(alone.submit(Prompt(embeds=prompts()[0]), SamplingParams(max_tokens=3)))
    assert len(servers[0].requests) == 6


async def test_engines_that_are_lost_are_reported_and_one_that_comes_back(vllm: Serve, remote: Connect) -> None:
    servers = [await vllm(slow([7] * 9, gate=asyncio.Event())) for _ in range(2)]
    engine = await remote(*servers)
    told: asyncio.Queue[UnavailableError | None] = asyncio.Queue()
    engine.watch(told.put_nowait)
    params = SamplingParams(max_tokens=9)
    running = [asyncio.create_task(collect(engine.submit(one, params))) for one in as_prompts(prompts()[:4])]
    while sum(len(one.requests) for one in servers) < 4:
        await asyncio.sleep(0)
    for server in servers:
        await server.kill()
    async with asyncio.timeout(ANSWERED):
        assert isinstance(await told.get(), UnavailableError)
        for one in await asyncio.gather(*running, return_exceptions=True):
            assert isinstance(one, UnavailableError) and one.reason == "ENGINE_LOST"
            assert not any(str(server.port) in one.message for server in servers)
    with pytest.raises(UnavailableError):
        engine.submit(Prompt(embeds=prompts()[0]), params)

    servers[1]._engine = slow([8])
    await servers[1].start()
    async with asyncio.timeout(ANSWERED):
        assert await told.get() is None
    assert await collect(engine.submit(Prompt(embeds=prompts()[0]), params)) == [8]


async def test_an_engine_that_hangs_is_left_when_it_stops_answering_its_health(vllm: Serve, remote: Connect) -> None:
    servers = [await vllm(slow([7, 8])) for _ in range(2)]
    engine = await remote(*servers)
    for server in servers:
        server.faults.append(Fault(after=1, then="hang"))
    generation = engine.submit(Prompt(embeds=prompts()[0]), SamplingParams(max_tokens=2))
    assert await anext(generation) == 7
    first, second = sorted(servers, key=lambda one: -len(one.requests))
    second.faults.clear()
    first.healthy = False
    assert await collect(generation) == [7]  # from its beginning, as this engine knows no other answer
    assert [one["max_tokens"] for one in second.requests] == [1]


@pytest.mark.parametrize("status", [0, 429, 503], ids=["no answer", "429", "503"])
async def test_answers_go_on_when_health_fails_once_and_end_when_it_fails_twice(
    vllm: Serve, remote: Connect, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(engine_check, "HEALTH_TIMEOUT_S", 0.2)
    gate = asyncio.Event()
    server = await vllm(slow([7, 8, 9], gate=gate))
    engine = await remote(server)
    told: asyncio.Queue[UnavailableError | None] = asyncio.Queue()
    engine.watch(told.put_nowait)
    answer = asyncio.create_task(collect(engine.submit(Prompt(embeds=prompts()[0]), SamplingParams(max_tokens=3))))
    while not server.requests:
        await asyncio.sleep(0)
    server.next_healths += [status, 200, status, 200, 200]
    while server.next_healths:
        await asyncio.sleep(0.001)
    gate.set()
    assert await answer == [7, 8, 9] and len(server.requests) == 1
    assert told.empty()
    server.next_healths += [status, status]
    async with asyncio.timeout(ANSWERED):
        assert isinstance(await told.get(), UnavailableError)
        assert await told.get() is None


async def test_one_refused_connection_is_enough(vllm: Serve, remote: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "POLL_S", 3600.0)
    server = await vllm(slow([7], gate=asyncio.Event()))
    engine = await remote(server)
    answer = asyncio.create_task(collect(engine.submit(Prompt(embeds=prompts()[0]), SamplingParams(max_tokens=1))))
    while not server.requests:
        await asyncio.sleep(0)
    await server.kill()
    async with asyncio.timeout(ANSWERED):
        with pytest.raises(UnavailableError, match="was lost"):
            await answer


async def test_questions_do_not_wait_for_an_engine_that_leaves_the_probe_unanswered(
    vllm: Serve, remote: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "PATIENCE_S", 0.2)
    server = await vllm(slow([7]))
    engine = await remote(server)
    server.probing.clear()
    server.faults.append(Fault())
    async with asyncio.timeout(ANSWERED):
        with pytest.raises(UnavailableError) as lost:
            await collect(engine.submit(Prompt(embeds=prompts()[0]), SamplingParams(max_tokens=1)))
    assert lost.value.reason == "ENGINE_LOST"


async def test_answers_behind_a_router_go_on_while_it_does_not_answer_the_probe(vllm: Serve, remote: Connect) -> None:
    gate = asyncio.Event()
    server = await vllm(slow([7, 8, 9], gate=gate))
    engine = await remote(server)
    told: asyncio.Queue[UnavailableError | None] = asyncio.Queue()
    engine.watch(told.put_nowait)
    params = SamplingParams(max_tokens=3)
    going_on = asyncio.create_task(collect(engine.submit(Prompt(embeds=prompts()[0]), params)))
    while not server.requests:
        await asyncio.sleep(0)
    server.probes_to_fail = 12
    server.healthy, server.health_text = False, "Unhealthy servers: [...]"  # as vllm-router says of one of its engines
    server.faults.append(Fault(status=503))
    broken = asyncio.create_task(collect(engine.submit(Prompt(embeds=prompts()[1]), params)))
    while server.probes_to_fail:
        await asyncio.sleep(0.001)
    gate.set()
    assert await going_on == await broken == [7, 8, 9]
    assert told.empty()
    sessions = [headers["x-session-id"] for headers in server.headers]
    assert sessions[1:] == [sessions[0], f"{sessions[0]}-1"]


async def test_another_model_is_refused_at_the_start_and_after_a_loss(
    vllm: Serve, remote: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server = await vllm(slow([7]))
    engine = await remote(server)
    told: asyncio.Queue[UnavailableError | None] = asyncio.Queue()
    engine.watch(told.put_nowait)
    await server.kill()
    assert await told.get() is not None
    server.likeliest = lambda rows: {token: value - 1 for token, value in knows_the_probe(rows).items()}
    await server.start()
    async with asyncio.timeout(ANSWERED):
        while "runs another model than this server's c3c7a9913bf00e5e" not in caplog.text:
            await asyncio.sleep(0.01)
    assert told.empty()
    with pytest.raises(UsageError, match=r"differ by 1\.00 nats, at most 0\.15 are allowed"):
        await remote(server)


@pytest.mark.parametrize("wrong", [{7: float("nan")}, {}, {7: float("inf")}])
async def test_an_engine_whose_probabilities_are_not_numbers_is_refused(
    vllm: Serve, remote: Connect, wrong: dict[int, float]
) -> None:
    with pytest.raises(UsageError, match="runs another model"):
        await remote(await vllm(slow([7]), lambda rows: wrong))


async def test_an_engine_of_the_model_in_half_precision_is_accepted(vllm: Serve, remote: Connect) -> None:
    rounded = lambda rows: {token: value + 0.05 for token, value in knows_the_probe(rows).items()}  # noqa: E731
    await remote(await vllm(slow([7]), rounded))


async def test_a_key_is_shown_to_engines(vllm: Serve, remote: Connect) -> None:
    server = await vllm(slow([7]), key="a key of an engine")
    assert await collect(
        (await remote(server, key="a key of an engine")).submit(
            Prompt(embeds=prompts()[0]), SamplingParams(max_tokens=1)
        )
    ) == [7]
    with pytest.raises(UsageError, match="status 401: Unauthorized; give its API key with --engine-key-file"):
        await remote(server)


async def test_an_address_where_nothing_listens_is_named(vllm: Serve, remote: Connect, free_port: int) -> None:
    server = await vllm(slow([7]))
    await server.kill()
    with pytest.raises(UnavailableError, match=f"no engine answers .http://127.0.0.1:{server.port}: ConnectError"):
        await remote(server)


async def test_a_server_starts_with_one_engine_of_two(vllm: Serve, remote: Connect) -> None:
    dead, server = await vllm(), await vllm(slow([7]))
    await dead.kill()
    engine = await remote(dead, server)
    for one in as_prompts(prompts()[:4]):
        assert await collect(engine.submit(one, SamplingParams(max_tokens=1))) == [7]


async def test_stopping_fails_answers_under_way(vllm: Serve, remote: Connect) -> None:
    engine = await remote(await vllm(slow([7], gate=asyncio.Event())))
    generation = engine.submit(Prompt(embeds=prompts()[0]), SamplingParams(max_tokens=1))
    await engine.stop()
    with pytest.raises(UnavailableError, match="the server is stopping"):
        await collect(generation)
    with pytest.raises(UnavailableError, match="the server is stopping"):
        engine.submit(Prompt(embeds=prompts()[0]), SamplingParams(max_tokens=1))


# settings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"engine": "vllm-remote"}, "--engine vllm-remote needs --engine-url"),
        (
            {"engine_urls": ("http://127.0.0.1:1",)},
            "--engine-url is for --engine vllm-remote, but the engine is embedded",
        ),
        ({"engine": "triton"}, "--engine must be one of embedded, vllm-remote, vllm, got 'triton'"),
        ({"engine": "vllm", "engine_dtype": "int8"}, "--engine-dtype must be one of float32, bfloat16, float16"),
        ({"engine": "vllm-remote", "engine_urls": ("127.0.0.1:80",)}, "must be http://HOST:PORT or https://HOST:PORT"),
        ({"engine": "vllm-remote", "engine_urls": ("http://a:70000",)}, "must be http://HOST:PORT"),
        ({"engine": "vllm-remote", "engine_urls": ("http://[::1]:80/v1/",)}, "must be the engine's root, without /v1"),
        ({"engine": "vllm-remote", "engine_urls": ("https://u:p@a",)}, "--engine-key-file"),
        ({"engine": "vllm-remote", "engine_urls": ("https://a", "https://a/")}, "https://a is given twice"),
    ],
)
def test_settings_of_engines_are_checked(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        ServerSettings(model=NANO, **given)
    assert said in str(refused.value)


def test_an_engine_on_another_machine_is_asked_unencrypted_only_if_the_network_is_private() -> None:
    given: dict[str, Any] = {"model": NANO, "engine": "vllm-remote", "engine_urls": ("http://10.0.0.5:8000/",)}
    with pytest.raises(SecurityError, match="is not encrypted") as refused:
        ServerSettings(**given)
    assert refused.value.reason == "TLS_AND_TOKEN_REQUIRED"
    assert ServerSettings(**given, engine_private_network=True).engine_urls == ("http://10.0.0.5:8000",)


def test_an_environment_without_vllm_is_explained() -> None:
    if find_spec("vllm"):
        pytest.skip("vLLM is installed here")
    with pytest.raises(UsageError, match="--engine vllm needs vLLM in this Python environment"):
        load(ServerSettings(model=NANO, engine="vllm"))


def test_a_checkpoint_without_its_probe_is_explained(tmp_path: Path) -> None:
    folder = tmp_path / "nano"
    shutil.copytree(NANO, folder, ignore=shutil.ignore_patterns("probe.json", "training"))
    with pytest.raises(CheckpointError, match=f"has no probe.json, which .*: tofc-lab probe {folder}"):
        load(ServerSettings(model=folder, engine="vllm-remote", engine_urls=("http://127.0.0.1:1",)))
    probe = (NANO / "probe.json").read_text()
    (folder / "probe.json").write_text(probe.replace("c3c7a9913bf00e5e", "0123456789abcdef"))
    with pytest.raises(CheckpointError, match="is of the model 0123456789abcdef, the weights are of c3c7a9913bf00e5e"):
        load(ServerSettings(model=folder, engine="vllm-remote", engine_urls=("http://127.0.0.1:1",)))


def test_several_engines_fit_into_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOFC_SERVER_ENGINE_URL", "http://127.0.0.1:1 http://10.0.0.5:8000")
    done = CliRunner().invoke(app, ["serve", "--engine", "vllm-remote"])
    assert done.exit_code == 2 and "--engine-url http://10.0.0.5:8000 is not encrypted" in done.output


# the whole server


async def test_a_server_before_an_engine_answers_as_one_with_the_decoder(vllm: Serve) -> None:
    answers = []
    engine = {"engine": "vllm-remote", "engine_urls": ((await vllm()).url,), "engine_dtype": "float32"}
    for given in (engine, {}):
        server = await start(ServerSettings(model=NANO, port=0, grace_s=0.0, **given))
        try:
            async with AsyncClient(server.address) as edge:
                picture = await edge.picture(EXAMPLE)
                answers.append([(await picture.ask(f"is there a {thing}?")).text for thing in THINGS[:6]])
        finally:
            await server.stop()
    assert answers[0] == answers[1]


async def test_a_server_before_an_engine_loads_neither_torch_nor_the_decoder(vllm: Serve) -> None:
    server = await vllm()
    script = f"""
import sys
from pathlib import Path
from edge_server.engine_loading import hide_torch
from edge_server.settings import ServerSettings
settings = ServerSettings(model=Path({str(NANO)!r}), engine="vllm-remote", engine_urls=({server.url!r},))
assert not settings.needs_torch
hide_torch()
from edge_server.server import start
from edge_server.backend import load
print(load(settings).engine.name, *sorted(name for name in sys.modules if name.partition(".")[0] == "torch"))
"""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await running.communicate()
    assert (out.decode().split(), error.decode()) == (["vllm-remote", "torch"], "")
    assert server.requests == []
