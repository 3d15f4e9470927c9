"""Pictures that are sent as image files: a raw client, and an encoder that measures how red a view is."""

from __future__ import annotations

import asyncio
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image

from edge_server.fake import FakeViewEncoder, fake_backend
from edge_server.picture_cache import OVERHEAD_BYTES
from edge_server.server import RunningServer
from edge_server.settings import ServerSettings, SessionLimits
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import ANSWERED, RawClient, image_picture, picture_id, until, within
from tofc.model.image_codec import compress
from tofc.rpc.channel import CHUNK_BYTES
from tofc.v1 import tofc_pb2 as pb

LIMITS = SessionLimits(image_bytes=100_000, image_pixels=300_000)
INVALID = grpc.StatusCode.INVALID_ARGUMENT
SIZE = (60, 40)


def flat(letter: str, size: tuple[int, int] = SIZE) -> Image.Image:
    """Return a picture whose views a `FakeViewEncoder` encodes as this letter."""
    return Image.new("RGB", size, (ord(letter),) * 3)


def jpeg(letter: str, size: tuple[int, int] = SIZE) -> bytes:
    return compress(flat(letter, size), "jpeg", 90)


async def forgotten(server: RunningServer) -> None:
    """Wait until the server holds no picture and no part of one."""
    await until(lambda: len(server.service.pictures) == 0 and server.service.pictures.size_bytes == 0)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """An event that a tower waits for; set after the test, so that no thread is left behind."""
    made = threading.Event()
    yield made
    made.set()


async def test_a_file_is_sent_once_and_asked_about_twice(serve: Serve, connect: Connect) -> None:
    server = await serve(limits=LIMITS)
    client = connect(server)
    welcome = await client.hello()
    assert (welcome.limits.image_bytes, welcome.limits.image_pixels) == (100_000, 300_000)
    await client.image(1, "a", jpeg("A"), size=SIZE)
    await client.ask(1, "?", refs=(1,))
    text, done = await client.answer(1)
    assert (text, done.usage.visual_tokens) == ("A?", 1)
    assert done.timing.decode_us > 0
    await client.send(pictures=[image_picture(2, "a", SIZE)])
    assert (await client.expect("picture_state")).complete
    await client.ask(2, "!", refs=(2, 1))
    assert (await client.answer(2))[0] == "AA!"
    await client.chunks(1, b"no image, and nobody decodes it")
    await client.end()
    assert server.service.pictures.size_bytes == OVERHEAD_BYTES + 4  # the row, and nothing of the file


async def test_crops_and_chunks(serve: Serve, connect: Connect) -> None:
    client = connect(await serve(limits=LIMITS))
    await client.hello()
    await client.send(pictures=[image_picture(1, "b", (448, 448), rows=2, columns=2)])
    await client.expect("picture_state")
    data = jpeg("B", (448, 448))
    await client.ask(1, "?", refs=(1,))  # a question waits for a file that is arriving
    await client.chunks(1, data, len(data) // 3)
    assert (await client.answer(1))[0] == "BBBBB?"


async def test_views_of_one_size_are_encoded_together(serve: Serve, connect: Connect) -> None:
    view_encoder = FakeViewEncoder(together=3)
    client = connect(await serve(fake_backend(view_encoder=view_encoder), limits=LIMITS))
    await client.hello()
    await client.send(pictures=[image_picture(1, "b", (448, 448), rows=2, columns=2)])
    await client.expect("picture_state")
    await client.chunks(1, jpeg("B", (448, 448)))
    await client.ask(1, "?", refs=(1,))
    assert (await client.answer(1))[0] == "BBBBB?"
    assert view_encoder.parts == [3, 1, 1]  # four crops, and the global view


async def test_packets_and_files_beside_each_other(serve: Serve, connect: Connect) -> None:
    client = connect(await serve(limits=LIMITS))
    await client.hello()
    await client.picture(1, "packets")
    await client.view(1, 0, b"packet ")
    await client.image(2, "file", jpeg("F"), size=SIZE)
    await client.ask(1, "?", refs=(1, 2))
    assert (await client.answer(1))[0] == "packet F?"


async def test_a_file_may_be_started_again(serve: Serve, connect: Connect) -> None:
    server = await serve(limits=LIMITS)
    client = connect(server)
    await client.hello()
    await client.send(pictures=[image_picture(1, "a", SIZE)])
    await client.expect("picture_state")
    wrong, right = jpeg("W", (400, 400)), jpeg("R")
    start = pb.ImageChunk(ref=1, total=len(wrong), data=wrong[:100])
    await client.send(image_chunks=[start])
    await client.expect("image_ack")
    assert server.service.pictures.size_bytes == OVERHEAD_BYTES + 100
    await client.chunks(1, right, 200)
    await client.ask(1, "?", refs=(1,))
    assert (await client.answer(1))[0] == "R?"


async def test_an_evicted_file_is_asked_for_again(serve: Serve, connect: Connect) -> None:
    server = await serve(limits=LIMITS, cache_bytes=2 * OVERHEAD_BYTES + 1000)
    client = connect(server)
    await client.hello()
    for ref, letter in enumerate("ABC", 1):
        await client.image(ref, letter, jpeg(letter), size=SIZE)
        await client.ask(ref, "?", refs=(ref,))
        assert (await client.answer(ref))[0] == f"{letter}?"
    assert len(server.service.pictures) == 2
    await client.ask(4, "?", refs=(3, 1))
    assert (await client.expect("need_picture")).ref == 1
    await client.image(1, "A", jpeg("A"), size=SIZE)
    assert (await client.answer(4))[0] == "CA?"


async def test_two_sessions_send_one_picture_and_it_is_encoded_once(serve: Serve, connect: Connect) -> None:
    view_encoder = FakeViewEncoder()
    server = await serve(fake_backend(view_encoder=view_encoder), limits=LIMITS)
    clients = [connect(server), connect(server)]
    data = jpeg("S", (448, 448))
    for client in clients:
        await client.hello()
        await client.send(pictures=[image_picture(1, "s", (448, 448), rows=2, columns=2)])
        assert not (await client.expect("picture_state")).complete
    for client in clients:
        await client.chunks(1, data)
        await client.ask(1, "?", refs=(1,))
    for client in clients:
        assert (await client.answer(1))[0] == "SSSSS?"
    assert view_encoder.encoded == 5


async def test_a_slow_tower_is_not_a_missing_view(serve: Serve, connect: Connect, gate: threading.Event) -> None:
    backend = fake_backend(view_encoder=FakeViewEncoder(before=lambda: gate.wait(ANSWERED)))
    client = connect(await serve(backend, limits=LIMITS, picture_timeout_s=0.02))
    await client.hello()
    await client.image(1, "a", jpeg("A"), size=SIZE)
    await client.ask(1, "?", refs=(1,))
    await client.picture(2, "unsent")
    await client.ask(2, "?", refs=(2,))  # asked later: when it times out, the first has timed out too
    error = await client.expect("error")
    assert (error.request, error.reason) == (2, "VIEWS_MISSING")
    gate.set()
    assert (await client.answer(1))[0] == "A?"


def test_only_one_of_the_two_image_limits_is_refused() -> None:
    with pytest.raises(ValueError, match="both at least 1, got 5 and 0"):
        SessionLimits(image_bytes=5)
    assert not ServerSettings(model=Path("unused")).take_images


async def test_without_the_option_image_files_are_refused(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    welcome = await client.hello()
    assert welcome.limits.image_bytes == 0
    await client.send(pictures=[image_picture(1, "a", SIZE)])
    message = await client.failed(grpc.StatusCode.FAILED_PRECONDITION, "IMAGES_NOT_TAKEN")
    assert "edge-server serve --take-images" in message


async def test_a_server_that_lacks_jpeg_xl_says_so(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    client = connect(await serve(limits=LIMITS))
    await client.hello()
    await client.send(pictures=[image_picture(1, "a", SIZE, kind=pb.IMAGE_FORMAT_JXL)])
    message = await client.failed(grpc.StatusCode.FAILED_PRECONDITION, "CODEC_MISSING")
    assert "the server" in message and "pip install pillow-jxl-plugin" in message


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        ({"size": SIZE, "kind": 0}, "IMAGE_FORMAT_UNKNOWN"),
        ({"size": SIZE, "kind": 9}, "IMAGE_FORMAT_UNKNOWN"),
        ({"size": (0, 40)}, "IMAGE_TOO_LARGE"),
        ({"size": (60, 5001)}, "IMAGE_TOO_LARGE"),
        ({"size": (2**32 - 1, 2**32 - 1)}, "IMAGE_TOO_LARGE"),
        ({"size": (20_000, 10)}, "IMAGE_INVALID"),  # a long strip, padded to a square before it is scaled down
        ({"size": (9990, 20)}, "IMAGE_TOO_LARGE"),  # the size of that square counts
        ({"size": (20, 548), "rows": 3, "columns": 3}, "IMAGE_TOO_LARGE"),
        ({"size": SIZE, "rows": 1, "columns": 2}, "LAYOUT_INVALID"),
        ({"size": (448, 448)}, "LAYOUT_INVALID"),
        ({"size": SIZE, "rows": 9, "columns": 9}, "TOO_MANY_VIEWS"),
    ],
)
async def test_announcements_that_are_refused(
    serve: Serve, connect: Connect, picture: dict[str, Any], reason: str
) -> None:
    server = await serve(limits=LIMITS)
    client = connect(server)
    await client.hello()
    await client.send(pictures=[image_picture(1, "a", **picture)])
    await client.failed(INVALID, reason)
    await forgotten(server)


@pytest.mark.parametrize(
    ("requests", "reason"),
    [
        ([{"image_chunks": [{"ref": 1, "total": 0, "data": b"x"}]}], "IMAGE_TOO_LARGE"),
        ([{"image_chunks": [{"ref": 1, "total": 100_001, "data": b"x"}]}], "IMAGE_TOO_LARGE"),
        ([{"image_chunks": [{"ref": 1, "total": 9}]}], "IMAGE_CHUNK_INVALID"),
        ([{"image_chunks": [{"ref": 1, "total": 90_000, "data": bytes(CHUNK_BYTES + 1)}]}], "IMAGE_CHUNK_INVALID"),
        ([{"image_chunks": [{"ref": 1, "total": 2, "data": b"xyz"}]}], "IMAGE_CHUNK_INVALID"),
        (
            [
                {"image_chunks": [{"ref": 1, "total": 9, "data": b"xyz"}]},
                {"image_chunks": [{"ref": 1, "offset": 4, "data": b"x"}]},
            ],
            "IMAGE_CHUNK_INVALID",
        ),
        ([{"image_chunks": [{"ref": 2, "total": 9, "data": b"xyz"}]}], "PICTURE_UNKNOWN"),
        ([{"views": [{"ref": 1, "index": 0, "packets": [b"x"]}]}], "VIEW_OF_IMAGE"),
        (
            [
                {"pictures": [{"ref": 3, "picture_id": picture_id("packets")}]},
                {"image_chunks": [{"ref": 3, "total": 9, "data": b"xyz"}]},
            ],
            "NO_IMAGE",
        ),
        ([{"pictures": [{"ref": 1, "picture_id": picture_id("a")}]}], "DUPLICATE_REF"),
    ],
)
async def test_chunks_that_are_refused(
    serve: Serve, connect: Connect, requests: list[dict[str, Any]], reason: str
) -> None:
    server = await serve(limits=LIMITS)
    client = connect(server)
    await client.hello()
    await client.send(pictures=[image_picture(1, "a", SIZE)])
    for request in requests:
        await client.send(**request)
    kinds = []
    while (response := await client.receive()).WhichOneof("response") != "error":
        kinds.append(response.WhichOneof("response"))
    assert response.error.reason == reason and response.error.request == 0
    assert set(kinds) <= {"picture_state", "image_ack"}
    await client.receive_status()
    await forgotten(server)


def bomb() -> bytes:
    """Return a WebP file whose header states the largest size of the format."""
    data = bytearray(compress(flat("B"), "webp", 50))
    data[26:30] = struct.pack("<HH", 16_383, 16_383)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "kind", "reason", "message"),
    [
        (jpeg("A")[:-40], "JPEG", "IMAGE_INVALID", "truncated"),
        (jpeg("A")[:30], "JPEG", "IMAGE_INVALID", "cannot be decoded as jpeg"),
        (b"not a picture", "JPEG", "IMAGE_INVALID", "cannot be decoded as jpeg"),
        (jpeg("A"), "WEBP", "IMAGE_INVALID", "cannot be decoded as webp"),
        (compress(flat("A"), "webp", 50), "AVIF", "IMAGE_INVALID", "cannot be decoded as avif"),
        (compress(flat("A"), "avif", 50)[:-9], "AVIF", "IMAGE_INVALID", "cannot be decoded as avif"),
        (jpeg("A", (40, 60)), "JPEG", "IMAGE_INVALID", "the file is 40 x 60 px, but 60 x 40 was announced"),
        (jpeg("A", (600, 501)), "JPEG", "IMAGE_TOO_LARGE", "600 × 501 px, but only 300000 px are allowed"),
        (bomb(), "WEBP", "IMAGE_TOO_LARGE", "16383 × 16383 px"),
    ],
    ids=["truncated", "header", "text", "jpeg-webp", "webp-avif", "avif", "turned", "large", "bomb"],
)
async def test_files_that_cannot_be_used_leave_nothing(
    serve: Serve, connect: Connect, data: bytes, kind: str, reason: str, message: str
) -> None:
    view_encoder = FakeViewEncoder()
    server = await serve(fake_backend(view_encoder=view_encoder), limits=LIMITS)
    client = connect(server)
    await client.hello()
    format_ = pb.ImageFormat.Value(f"IMAGE_FORMAT_{kind}")
    await client.send(pictures=[image_picture(1, "a", SIZE, kind=format_)])
    await client.expect("picture_state")
    await client.ask(1, "?", refs=(1,))  # must not wait for ever
    await client.chunks(1, data)
    assert message in await client.failed(grpc.StatusCode.DATA_LOSS, reason)
    await forgotten(server)
    assert view_encoder.encoded == 0
    other = connect(server)  # and the server continues
    await other.hello()
    await other.image(1, "a", jpeg("A"), size=SIZE)
    await other.ask(1, "?", refs=(1,))
    assert (await other.answer(1))[0] == "A?"


async def test_a_narrow_picture_whose_square_is_within_the_limit(serve: Serve, connect: Connect) -> None:
    client = connect(await serve(fake_backend(view_encoder=FakeViewEncoder()), limits=LIMITS))
    await client.hello()
    await client.send(pictures=[image_picture(1, "a", (20, 547), rows=3, columns=3)])
    await client.expect("picture_state")
    await client.chunks(1, jpeg("A", (20, 547)))
    await client.ask(1, "?", refs=(1,))
    assert (await client.answer(1))[0].endswith("?")


async def send_first(client: RawClient, file: bytes, length: int) -> None:
    """Announce a file as "a" and send its first bytes."""
    await client.hello()
    await client.send(pictures=[image_picture(1, "a", SIZE)])
    assert (await client.expect("picture_state")).image.bytes == 0
    await client.send(image_chunks=[pb.ImageChunk(ref=1, total=len(file), data=file[:length])])
    await client.expect("image_ack")


async def send_rest(client: RawClient, file: bytes, offset: int) -> None:
    """Send the rest of "a", in two chunks, and ask about it."""
    middle = (offset + len(file)) // 2
    chunks = [(offset, len(file), file[offset:middle])] * (middle > offset) + [(middle, 0, file[middle:])]
    for at, total, data in chunks:
        chunk = pb.ImageChunk(ref=1, offset=at, total=total or len(file) * (at == offset), data=data)
        await client.send(image_chunks=[chunk])
        assert (await client.expect("image_ack")).offset == at
    await client.ask(1, "?", refs=(1,))
    assert (await client.answer(1))[0] == "A?"


@pytest.mark.parametrize("noticed", [True, False])
@pytest.mark.parametrize("less", [0, 50])
async def test_a_file_is_continued_after_a_lost_link(serve: Serve, connect: Connect, noticed: bool, less: int) -> None:
    """Whether or not the server has noticed by then that the link was lost."""
    server = await serve(limits=LIMITS)
    pictures = server.service.pictures
    lost, back, other = connect(server), connect(server), connect(server)
    file = jpeg("A")
    await send_first(lost, file, 300)
    if noticed:
        await lost.channel.close()
        await until(lambda: (held := pictures.get(picture_id("a"))) and held.evictable)
        assert pictures.size_bytes == OVERHEAD_BYTES + 300
    await back.hello()
    await back.send(pictures=[image_picture(1, "a", SIZE)])
    state = await back.expect("picture_state")
    assert (state.complete, state.image.bytes, state.image.crc32) == (False, 300, zlib.crc32(file[:300]))
    await send_rest(back, file, 300 - less)
    if not noticed:
        await lost.end()
    assert pictures.size_bytes == OVERHEAD_BYTES + 4
    await other.hello()
    await other.send(pictures=[image_picture(1, "a", SIZE)])
    state = await other.expect("picture_state")
    assert state.complete and not state.HasField("image")


async def test_the_longest_part_of_a_file_is_kept(serve: Serve, connect: Connect) -> None:
    server = await serve(limits=LIMITS)
    pictures = server.service.pictures
    for length in (200, 400, 300):
        client = connect(server)
        await client.hello()
        await client.send(pictures=[image_picture(1, "a", SIZE)])
        await client.expect("picture_state")
        await client.send(image_chunks=[pb.ImageChunk(ref=1, total=5000, data=bytes(length))])
        await client.expect("image_ack")
        await client.channel.close()
        await until(lambda: (held := pictures.get(picture_id("a"))) and held.evictable)
    assert pictures.size_bytes == OVERHEAD_BYTES + 400
    client = connect(server)
    await client.hello()
    await client.send(pictures=[image_picture(1, "a", SIZE)])
    assert (await client.expect("picture_state")).image.bytes == 400
    await client.send(image_chunks=[pb.ImageChunk(ref=1, offset=401, total=5000, data=b"x")])
    await client.failed(INVALID, "IMAGE_CHUNK_INVALID")
    await forgotten(server)  # nothing is kept of a session that broke the protocol


async def test_a_session_continues_the_kept_part_of_a_file_only_once(serve: Serve, connect: Connect) -> None:
    """Continuing copies the kept part, which may be megabytes, for a chunk of one byte."""
    server = await serve(limits=LIMITS)
    other, client = connect(server), connect(server)
    await send_first(other, bytes(5000), 300)
    await client.hello()
    await client.send(pictures=[image_picture(1, "a", SIZE)])
    await client.expect("picture_state")
    for total, offset in ((5000, 300), (5000, 0)):
        await client.send(image_chunks=[pb.ImageChunk(ref=1, offset=offset, total=total, data=b"x")])
        await client.expect("image_ack")
    await client.send(image_chunks=[pb.ImageChunk(ref=1, offset=300, total=5000, data=b"x")])
    await client.failed(INVALID, "IMAGE_CHUNK_INVALID")
    assert server.service.pictures.size_bytes == OVERHEAD_BYTES + 300


async def test_the_kept_part_of_a_file_makes_room(serve: Serve, connect: Connect) -> None:
    server = await serve(limits=LIMITS, cache_bytes=2 * OVERHEAD_BYTES + 1000)
    pictures = server.service.pictures
    lost, other = connect(server), connect(server)
    await send_first(lost, bytes(5000), 900)
    await lost.channel.close()
    await until(lambda: (held := pictures.get(picture_id("a"))) and held.evictable)
    await other.hello()
    await other.send(pictures=[image_picture(1, "b", SIZE)])
    await other.expect("picture_state")
    assert pictures.get(picture_id("a")) is not None
    await other.send(image_chunks=[pb.ImageChunk(ref=1, total=5000, data=bytes(900))])
    await other.expect("image_ack")
    assert pictures.get(picture_id("a")) is None and pictures.size_bytes == OVERHEAD_BYTES + 900
    await other.end()
    await until(lambda: (held := pictures.get(picture_id("b"))) and held.evictable)
    assert pictures.size_bytes == OVERHEAD_BYTES + 900, "kept after an orderly end too, until others need the memory"


async def test_a_client_that_leaves_during_encoding_leaves_its_file(
    serve: Serve, connect: Connect, gate: threading.Event
) -> None:
    server = await serve(fake_backend(view_encoder=FakeViewEncoder(lambda: gate.wait(ANSWERED))), limits=LIMITS)
    pictures = server.service.pictures
    lost, back = connect(server), connect(server)
    file = jpeg("A")
    await send_first(lost, file, len(file))
    await until(lambda: (held := pictures.get(picture_id("a"))) and held.pending_decodes)
    await lost.channel.close()
    await until(lambda: (held := pictures.get(picture_id("a"))) and held.evictable)
    assert pictures.size_bytes == OVERHEAD_BYTES + len(file)
    gate.set()
    await back.hello()
    await back.send(pictures=[image_picture(1, "a", SIZE)])
    assert (await back.expect("picture_state")).image.bytes == len(file)
    await send_rest(back, file, len(file) - 1)
    assert pictures.size_bytes == OVERHEAD_BYTES + 4


async def test_the_views_of_a_client_that_left_are_not_encoded(
    serve: Serve, connect: Connect, gate: threading.Event
) -> None:
    encoding = threading.Event()

    def before() -> None:
        encoding.set()
        gate.wait(ANSWERED)

    view_encoder = FakeViewEncoder(before)
    server = await serve(fake_backend(view_encoder=view_encoder), limits=LIMITS)
    client, waiting = connect(server), connect(server)
    await client.hello()
    await client.image(1, "a", jpeg("A", (448, 448)), size=(448, 448), rows=2, columns=2)
    await client.ask(1, "?", refs=(1,))
    await until(encoding.is_set)
    await waiting.hello()
    await waiting.image(1, "w", jpeg("W"), size=SIZE)  # its turn comes after
    await client.channel.close()
    await until(lambda: (held := server.service.pictures.get(picture_id("a"))) and held.evictable)
    await waiting.ask(1, "?", refs=(1,))
    gate.set()
    assert (await waiting.answer(1))[0] == "W?"
    assert view_encoder.encoded == 2, (
        "one view of the first picture, which nobody wants any more, and the second picture"
    )
    left = len(jpeg("A", (448, 448)))
    assert server.service.pictures.size_bytes == OVERHEAD_BYTES + left + OVERHEAD_BYTES + 4


async def test_waiting_files_count_as_memory_of_pictures(serve: Serve, connect: Connect, gate: threading.Event) -> None:
    backend = fake_backend(view_encoder=FakeViewEncoder(before=lambda: gate.wait(ANSWERED)))
    server = await serve(backend, limits=LIMITS, cache_bytes=3 * OVERHEAD_BYTES + 2000)
    client = connect(server)
    await client.hello()
    for ref in (1, 2):
        await client.image(ref, str(ref), jpeg("A"), size=SIZE)
    await client.send(pictures=[image_picture(3, "3", SIZE)])
    await client.expect("picture_state")
    await client.ask(1, "?", refs=(3,))
    await client.send(image_chunks=[pb.ImageChunk(ref=3, total=2000, data=bytes(2000))])
    while (response := await client.receive()).WhichOneof("response") == "image_ack":
        pass
    assert (response.error.request, response.error.reason) == (1, "CACHE_FULL")
    gate.set()
    await client.end()
    await until(lambda: server.service.pictures.size_bytes == 2 * (OVERHEAD_BYTES + 4))


async def test_part_of_a_file_takes_no_memory_once_its_picture_was_dropped(serve: Serve, connect: Connect) -> None:
    server = await serve(fake_backend(view_encoder=FakeViewEncoder()), limits=replace(LIMITS, pictures_under_way=2))
    client = connect(server)
    await client.hello()
    for ref in range(1, 9):
        await client.send(pictures=[image_picture(ref, str(ref), SIZE)])
        await client.expect("picture_state")
        await client.send(image_chunks=[pb.ImageChunk(ref=ref, total=2000, data=bytes(1000))])
        await client.expect("image_ack")
    assert server.service.pictures.size_bytes <= 3 * (OVERHEAD_BYTES + 1000)
    await client.end()
    pictures = server.service.pictures
    await until(lambda: pictures.size_bytes == len(pictures) * (OVERHEAD_BYTES + 1000))
    pictures.reserve(pictures.capacity_bytes)  # evicts all that is kept
    assert len(pictures) == 0 and pictures.size_bytes == pictures.capacity_bytes


async def test_a_server_stops_while_a_view_is_encoded(serve: Serve, connect: Connect, gate: threading.Event) -> None:
    backend = fake_backend(view_encoder=FakeViewEncoder(before=lambda: gate.wait(ANSWERED)))
    server = await serve(backend, limits=LIMITS)
    client = connect(server)
    await client.hello()
    await client.image(1, "a", jpeg("A"), size=SIZE)
    stopping = asyncio.create_task(server.stop(grace_s=ANSWERED))
    await client.failed(grpc.StatusCode.UNAVAILABLE, "STOPPING")
    await within(stopping)
    await forgotten(server)
