"""Running out of memory is reported to the questions that needed it; the session stays open."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from typer.testing import CliRunner

from edge_server import cli
from edge_server.fake import FakeAssembler, FakeViewEncoder, fake_backend
from edge_server.picture_cache import OVERHEAD_BYTES, PartialFile
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import RawClient, image_picture, picture_id, until
from tests.server.test_image_uploads import LIMITS, SIZE, jpeg
from tofc.v1 import tofc_pb2 as pb

SHORT = (
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    RuntimeError("can't start new thread"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.52 GiB"),
    RuntimeError(
        "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB, max allowed: 9.07 GB)"
    ),
    RuntimeError("Invalid buffer size: 16.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    OSError(12, "Cannot allocate memory"),
)
PLACES = ("PIL.ImageFile.ImageFile.load", "edge_server.image_decoding.views", "edge_server.fake.FakeViewEncoder.encode")


def full(error: BaseException) -> Callable[..., Any]:
    def raise_it(*_: object, **__: object) -> None:
        raise error

    return raise_it


async def refused(client: RawClient, request: int, reason: str = "NO_MEMORY") -> str:
    """Return the message of a question's error; acknowledgements before it are skipped."""
    while (response := await client.receive()).WhichOneof("response") == "image_ack":
        pass
    assert (response.error.request, response.error.reason) == (request, reason), response
    return response.error.message


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return the log's messages above level info, and check that none has a traceback."""

    def lines() -> list[str]:
        records = [one for one in caplog.records if one.levelno > logging.INFO and one.name.startswith("edge_server")]
        assert not any(one.exc_info for one in records)
        return [one.getMessage() for one in records]

    return lines


@pytest.mark.parametrize("error", SHORT, ids=repr)
async def test_a_view(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]], error: Exception
) -> None:
    server = await serve()
    client = connect(server)
    await client.hello()
    monkeypatch.setattr(FakeAssembler, "views", full(error))
    await client.picture(1, "a", rows=1, columns=1)
    await client.ask(1, "?", refs=(1,))
    await client.view(1, 0, b"x")
    assert "not enough memory for view 0 of ref 1 of session 1" in await refused(client, 1)
    await client.view(1, 1, b"y")  # acknowledged and dropped, like views of an evicted picture
    await until(lambda: server.service.pictures.size_bytes == 0)
    monkeypatch.undo()
    await client.ask(2, "?", refs=(1,))
    assert (await client.expect("need_picture")).ref == 1
    for index in (0, 1):
        await client.view(1, index, b"z")
    assert (await client.answer(2))[0] == "zz?"
    assert {(1, 0), (1, 1)} <= set(client.acknowledged), "otherwise the client would wait for acknowledgements"
    await client.end()
    (line,) = warnings()
    assert line.startswith("no memory for view 0 of ref 1 of session 1")


async def test_a_view_that_does_not_fit_into_the_cache(serve: Serve, connect: Connect) -> None:
    client = connect(await serve(cache_bytes=OVERHEAD_BYTES + 40))
    await client.hello()
    await client.picture(1, "a")
    await client.ask(1, "?", refs=(1,))
    await client.view(1, 0, b"x" * 100)
    assert "--cache-mib" in await refused(client, 1, "CACHE_FULL")
    await client.ask(2, "still there?")
    assert (await client.answer(2))[0] == "still there?"


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("error", SHORT, ids=repr)
async def test_an_image(
    serve: Serve,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    warnings: Callable[[], list[str]],
    where: str,
    error: Exception,
) -> None:
    server = await serve(fake_backend(view_encoder=FakeViewEncoder()), limits=LIMITS)
    client = connect(server)
    await client.hello()
    monkeypatch.setattr(where, full(error))
    await client.send(pictures=[image_picture(1, "a", SIZE, want_state=False)])
    await client.ask(1, "?", refs=(1,))
    await client.send(image_chunks=[pb.ImageChunk(ref=1, total=len(jpeg("A")), data=jpeg("A"))])
    assert "not enough memory for a picture of 60 x 40 px" in await refused(client, 1)
    await until(lambda: server.service.pictures.size_bytes == 0)
    monkeypatch.undo()
    await client.ask(2, "?", refs=(1,))
    assert (await client.expect("need_picture")).ref == 1
    await client.chunks(1, jpeg("A"))
    assert (await client.answer(2))[0] == "A?"
    await client.end()
    (line,) = warnings()
    assert line.startswith("no memory for a picture of 60 x 40 px")


async def test_a_chunk(serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await serve(limits=LIMITS)
    client = connect(server)
    await client.hello()
    await client.send(pictures=[image_picture(1, "a", SIZE, want_state=False)])
    await client.ask(1, "?", refs=(1,))
    add = PartialFile.add
    monkeypatch.setattr(PartialFile, "add", lambda file, data: add(file, data) if not data else full(MemoryError())())
    await client.send(image_chunks=[pb.ImageChunk(ref=1, total=2000, data=bytes(1000))])
    assert "not enough memory for the image of ref 1" in await refused(client, 1)
    await client.send(image_chunks=[pb.ImageChunk(ref=1, offset=1000, data=bytes(1000))])
    await until(lambda: server.service.pictures.size_bytes == 0)
    await client.ask(2, "still there?")
    while (response := await client.receive()).WhichOneof("response") == "image_ack":
        pass
    assert response.WhichOneof("response") == "token"


async def test_a_prompt(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    client = connect(await serve())
    await client.hello()
    monkeypatch.setattr(FakeAssembler, "prompt", full(MemoryError()))
    await client.ask(1, "?")
    assert "not enough memory for question 1" in await refused(client, 1)
    monkeypatch.undo()
    await client.ask(2, "?")
    assert (await client.answer(2))[0] == "?"
    assert len(warnings()) == 1


async def test_two_questions_about_one_picture_both_get_the_error(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(await serve())
    await client.hello()
    monkeypatch.setattr(FakeAssembler, "views", full(MemoryError()))
    await client.picture(1, "a")
    for number in (1, 2):
        await client.ask(number, "?", refs=(1,))
    await client.view(1, 0, b"x")
    for number in (1, 2):
        await refused(client, number)


async def test_an_error_that_belongs_to_no_question_ends_the_session(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    client = connect(await serve())
    await client.hello()
    monkeypatch.setattr("edge_server.uploads.Uploads.announce", full(MemoryError()))
    await client.send(pictures=[pb.Picture(ref=1, picture_id=picture_id("a"))])
    await client.failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "NO_MEMORY")
    assert len(warnings()) == 1


@pytest.mark.parametrize("error", SHORT, ids=repr)
def test_a_server_without_memory_to_start_says_so(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr("edge_server.backend.load", full(error))
    result = CliRunner().invoke(cli.app, ["serve", "--port", "0", "--log-level", "critical"])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    assert line.startswith("edge-server: ") and "memory" in line


# A real process that is allowed little more memory than it has.
SHORT_OF_MEMORY = """
import io, resource, sys
from pathlib import Path
from PIL import Image
from edge_server.image_decoding import CODECS, read_views
from tofc.model.open_image import open_image
from tofc.model.views import ViewRule
from tofc.v1 import tofc_pb2 as pb
rule = ViewRule(global_size=336, crop_size=224, max_side=1344)
side, codec, path = 4000, sys.argv[1], Path(sys.argv[2])
small = io.BytesIO()
Image.new("RGB", (8, 8)).save(small, codec)  # load what is imported late
Image.open(small).load()
data = path.read_bytes()
kind = next(number for number, name in CODECS.items() if name == codec)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (24 << 20), -1))
try:
    read_views(data, pb.Image(format=kind, width=side, height=side), rule, 10**8)
except MemoryError:
    print("server: memory")
try:
    open_image(path)
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is Linux's")
@pytest.mark.parametrize("codec", ["jpeg", "webp", "avif"])
def test_a_process_with_little_memory_says_so(tmp_path: Path, codec: str) -> None:
    from PIL import Image

    path = tmp_path / f"large.{codec}"
    Image.new("RGB", (4000, 4000), "red").save(path, codec, **({"speed": 10} if codec == "avif" else {}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    found = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, codec, str(path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        env=environment,
    )
    assert found.stdout == f"server: memory\n{path} needs more memory than is free; scale it down first\n", found.stderr
