"""An engine that is lost: what the server reports, and what questions in progress are told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from device_client.fake import FakeEncoder
from device_client.link import Target
from device_client.retry_policy import RetryPolicy
from device_client.session import Session
from edge_server.engine.base import Prompt, sample_params
from edge_server.engine.fake import FakeEngine
from edge_server.engine.sampling import SamplingParams
from edge_server.fake import FakeViewEncoder, fake_backend
from edge_server.server import SERVICE
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import ANSWERED
from tests.server.test_image_uploads import LIMITS, SIZE, jpeg
from tofc.errors import InvalidRequestError, UnavailableError
from tofc.v1 import tofc_pb2 as pb

REVIVED_AFTER = 2 * RetryPolicy().connects  # pauses: more than a link that is lost gets

Status = health_pb2.HealthCheckResponse.ServingStatus


async def reported(watch: Any) -> int:
    async with asyncio.timeout(ANSWERED):
        response = await watch.read()
    return int(response.status)


async def test_a_lost_engine_is_reported_until_it_is_back(serve: Serve, connect: Connect) -> None:
    engine = FakeEngine(lambda _: list(b"many words"), gate=asyncio.Event())
    server = await serve(fake_backend(engine=engine))
    client = connect(server)
    await client.hello()
    watch = health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    assert await reported(watch) == Status.Value("SERVING")
    await client.send(asks=[pb.Ask(request=1, question="?")])
    await engine.busy.wait()

    engine.die()
    assert await reported(watch) == Status.Value("NOT_SERVING")
    error = await client.expect("error")
    assert (error.request, error.reason) == (1, "ENGINE_LOST")
    refused = await connect(server).receive()
    assert refused.error.reason == "ENGINE_LOST" and refused.error.status == grpc.StatusCode.UNAVAILABLE.value[0]
    await client.send(asks=[pb.Ask(request=2, question="?")])
    assert (await client.expect("error")).reason == "ENGINE_LOST"

    engine.revive()
    assert await reported(watch) == Status.Value("SERVING")
    await connect(server).hello()
    assert not server.watching_engine.done()


async def test_a_gpu_that_the_vision_tower_loses_ends_the_server(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    def lose() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    server = await serve(fake_backend(view_encoder=FakeViewEncoder(before=lose)), limits=LIMITS)
    client = connect(server)
    await client.hello()
    watch = health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    assert await reported(watch) == Status.Value("SERVING")
    await client.image(1, "a", jpeg("A"), size=SIZE)
    assert (await client.expect("error")).reason == "ENGINE_LOST"
    assert await reported(watch) == Status.Value("NOT_SERVING")
    assert isinstance(server.watching_engine.exception(), UnavailableError)
    assert "the vision tower failed" in caplog.text


async def test_an_engine_that_does_not_come_back_ends_the_server(serve: Serve) -> None:
    engine = FakeEngine(lambda _: [])
    engine.recovers = False
    server = await serve(fake_backend(engine=engine))
    engine.die()
    assert isinstance(server.watching_engine.exception(), UnavailableError)


@pytest.mark.parametrize("wait_s", [None, 70.0])
async def test_a_device_waits_for_an_engine_that_comes_back(serve: Serve, tmp_path: Path, wait_s: float | None) -> None:
    """Longer than for a lost link, outside the question's time, and without sending the picture again."""
    gate = asyncio.Event()
    engine = FakeEngine(lambda _: list(b"yes"), gate=gate)
    server = await serve(fake_backend(engine=engine))
    Image.new("RGB", (48, 48)).save(picture := tmp_path / "picture.png")
    pauses_s, logged = list[float](), list[str]()

    async def sleep(seconds: float) -> None:
        pauses_s.append(seconds)
        if len(pauses_s) == REVIVED_AFTER:
            engine.revive()
            gate.set()

    encoder = FakeEncoder(model_id="fake-model", codec_id="fake-codec")
    settings: dict[str, Any] = {"wait_s": wait_s, "sleep": sleep, "log": logged.append}
    async with Session(Target(address=server.address), encoder, **settings) as session:
        asking = asyncio.create_task(session.ask([session.open(picture)], "?", timeout_s=ANSWERED).result())
        await engine.busy.wait()
        engine.die()
        report = await asking
    assert (report.answer, report.reconnects, report.views_sent) == ("yes", 1, report.views)
    assert len(pauses_s) == REVIVED_AFTER
    waiting = "waiting" if wait_s is None else "waiting up to 70 s"
    assert logged == [f"the server at {server.address} has lost the engine that runs its model; {waiting}"]


@pytest.mark.parametrize("wait_s", [0.0, 5.0])
async def test_a_device_waits_for_an_engine_no_longer_than_its_user_allows(serve: Serve, wait_s: float) -> None:
    engine = FakeEngine(lambda _: list(b"yes"), gate=asyncio.Event())
    server = await serve(fake_backend(engine=engine))
    pauses_s: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses_s.append(seconds)

    encoder = FakeEncoder(model_id="fake-model", codec_id="fake-codec")
    async with Session(Target(address=server.address), encoder, wait_s=wait_s, sleep=sleep) as session:
        asking = asyncio.create_task(session.ask([], "?").result())
        await engine.busy.wait()
        engine.die()
        with pytest.raises(UnavailableError) as lost:
            await asking
    assert lost.value.reason == "ENGINE_LOST"
    assert sum(pauses_s[1:]) == pytest.approx(wait_s, abs=1.0), "the first is that of the lost answer"


def test_rows_that_are_not_finite_are_no_prompt() -> None:
    rows = np.zeros((3, 2), np.float32)
    for value in (np.nan, np.inf, -np.inf):
        rows[1, 1] = value
        with pytest.raises(InvalidRequestError, match="row 1 of the prompt is not finite; send the picture again"):
            Prompt(embeds=rows)


def test_each_sample_has_a_seed_of_its_own() -> None:
    params = SamplingParams(max_tokens=1, temperature=1.0, seed=2**64 - 2)
    assert [one.seed for one in sample_params(params, 3)] == [2**64 - 2, 2**64 - 1, 0]
