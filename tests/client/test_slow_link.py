"""Narrow links, real client and server: a slow link is not taken for a dead one, and what arrived is not sent again.

Times are scaled down: where pings must be replied to within a second, a link of 6 kB/s is as slow as one of 600 bytes
a second where they have ten.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from benchmarks.relay import Relay
from device_client.encoder import Encoder, EncoderThread
from device_client.fake import FakeEncoder
from device_client.image_encoder import ImageEncoder
from device_client.link import VIEWS_IN_FLIGHT, Link, Target
from device_client.picture import ImageForm
from device_client.picture_upload import PictureUpload
from device_client.report import Report
from device_client.retry_policy import RetryPolicy
from device_client.send_window import MAX_WINDOW_BYTES, MIN_CHUNK_BYTES, SendWindow
from device_client.session import Session
from edge_server import server as servers
from edge_server.fake import FakeViewEncoder, fake_backend
from edge_server.server import RunningServer, start
from edge_server.settings import ServerSettings, SessionLimits
from tofc.errors import CallError, LinkLostError
from tofc.rpc.channel import CHUNK_BYTES, Keepalive, make_server

KEEPALIVE = Keepalive(client_interval_ms=1000, server_interval_ms=1000, timeout_ms=1000, min_interval_ms=100)
RATE = 6000.0
HANGS_S = 60
NOTICED_S = 20  # gRPC by itself notices a dead link a minute after its ping


@pytest_asyncio.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningServer]:
    monkeypatch.setattr(servers.channel, "make_server", partial(make_server, keepalive=KEEPALIVE))
    limits = SessionLimits(image_bytes=1_000_000, image_pixels=1_000_000)
    settings = ServerSettings(model=Path("unused"), port=0, grace_s=0.0, limits=limits)
    running = await start(settings, lambda _: fake_backend())
    yield running
    await running.stop()


def image_files() -> ImageEncoder:
    return ImageEncoder(
        model_id="fake-model", codec_id="fake-codec", rule=FakeViewEncoder().rule, form=ImageForm(quality=30)
    )


def packets(size: int) -> FakeEncoder:
    return FakeEncoder(model_id="fake-model", codec_id="fake-codec", packet_bytes=size, rule=FakeViewEncoder().rule)


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A picture of one view whose file is some 17 kB."""
    pixels = np.random.default_rng(1).integers(0, 256, (250, 250, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


async def asked(relay: Relay, encoder: Encoder, path: Path) -> tuple[Report, int]:
    """An answer about a picture, and the bytes of its packets or file."""
    target = Target(address=f"127.0.0.1:{relay.port}", keepalive=KEEPALIVE)
    async with asyncio.timeout(HANGS_S), Session(target, encoder, retry=RetryPolicy(first_s=0.01)) as session:
        picture = session.open(path)
        report = await session.ask([picture], "what?").result()
        return report, sum(len(one.packet) for one in picture.packets)


async def test_a_file_that_takes_long_arrives(server: RunningServer, noise: Path) -> None:
    async with Relay(server.port, rate=RATE) as relay:
        report, size = await asked(relay, image_files(), noise)
        assert size > 2.5 * RATE * KEEPALIVE.timeout_ms / 1e3, "it takes much longer than pings may"
        assert (report.reconnects, report.bytes_picture, relay.links) == (0, size, 1)


async def test_packets_and_a_long_answer_over_a_link_with_much_delay(server: RunningServer, wide: Path) -> None:
    async with Relay(server.port, rate=RATE / 2, delay_s=0.05) as relay:
        report, size = await asked(relay, packets(20), wide)
        assert (report.reconnects, report.bytes_picture, report.views_sent) == (0, size, 21)
        assert report.usage["new_tokens"] == size + len("what?"), "a message each, as fast as they can be sent"


async def test_a_file_arrives_over_a_link_that_is_lost_more_often_than_without_progress(
    server: RunningServer, noise: Path
) -> None:
    async with Relay(server.port, rate=RATE * 2, cuts=[4000, 3000, 3000, 3000, 3000]) as relay:
        report, size = await asked(relay, image_files(), noise)
        assert report.reconnects == 5 > RetryPolicy().losses and relay.links == 6
        assert size < report.bytes_picture < 3 * size, "restarted each time it would be four"


async def test_views_that_arrived_are_not_sent_again(server: RunningServer, wide: Path) -> None:
    async with Relay(server.port, rate=RATE * 4, cuts=[6000]) as relay:
        report, _ = await asked(relay, packets(400), wide)
        assert (report.reconnects, relay.links) == (1, 2)
        assert 21 <= report.views_sent <= 21 + VIEWS_IN_FLIGHT


@pytest.mark.parametrize("dies_at", [None, 6000], ids=["idle", "in the middle of a file"])
async def test_a_link_that_dies_in_silence_is_noticed_on_both_sides(
    server: RunningServer, noise: Path, dies_at: int | None
) -> None:
    async with Relay(server.port, rate=RATE) as relay:
        relay.dies_at = dies_at
        link = await Link.open(
            Target(address=f"127.0.0.1:{relay.port}", keepalive=KEEPALIVE), "fake-model", "fake-codec"
        )
        ended, end = asyncio.Event(), link.end

        def noting(failure: CallError) -> None:
            end(failure)
            ended.set()

        link.end = noting  # type: ignore[method-assign]
        encoder = EncoderThread(image_files())
        if dies_at is None:
            relay.die()
        else:
            PictureUpload(link, encoder, ref=1).start(encoder.open(noise))
        async with asyncio.timeout(NOTICED_S):
            await ended.wait()
            await server.service.wait_until_empty()
        assert isinstance(link.failure, LinkLostError) and relay.carried < 12_000
        encoder.close()
        await link.close()


@pytest.mark.parametrize("rate", [100.0, 300.0, 1e4, 1e7])
@pytest.mark.parametrize("trip_s", [0.01, 1.0])
def test_the_window_follows_the_speed_of_the_link(rate: float, trip_s: float) -> None:
    """The bytes in flight settle at what the link carries in four of ten seconds, or at one chunk."""
    now, free_at, sent = 0.0, 0.0, 0
    window = SendWindow(10.0, clock=lambda: now)
    in_flight = []
    for _ in range(300):
        while window.admits(window.chunk_bytes):
            size = window.chunk_bytes
            free_at = max(free_at, now) + size / rate
            in_flight.append((free_at + trip_s, window.send(size)))
            sent += size
        waits_s = free_at - now  # of what would leave next, a ping for instance
        now, chunk = in_flight.pop(0)
        window.acknowledge(chunk)
    assert waits_s <= max(4.0, MIN_CHUNK_BYTES / rate)
    assert sent >= 0.6 * min(rate * now, MAX_WINDOW_BYTES / (trip_s + MAX_WINDOW_BYTES / rate) * now)
    assert MIN_CHUNK_BYTES <= window.chunk_bytes <= CHUNK_BYTES
