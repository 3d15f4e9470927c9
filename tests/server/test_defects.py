"""An exception outside TOFC's own tree is a defect: it shows its traceback in the log, or ends with exit code 70."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_server.fake import FakeAssembler, fake_backend
from edge_server.outbox import Outbox
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import ANSWERED
from tofc.program import FAULTY
from tofc.v1 import tofc_pb2 as pb


class Broken(FakeAssembler):
    def views(self, packet: bytes, *, codec_id: str, count: int, last: bool) -> Sequence[NDArray[np.float32]]:
        raise ValueError("words of a library")


def broken(ids: Sequence[int]) -> str:
    raise ValueError("words of a library")


def traceback_of(caplog: pytest.LogCaptureFixture) -> str:
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1 and errors[0].exc_info is not None
    return logging.Formatter().formatException(errors[0].exc_info)


async def test_a_defect_in_a_session_ends_the_session(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(await serve(replace(fake_backend(), assembler=Broken())))
    await client.hello()
    await client.picture(1, "a")
    await client.view(1, 0, b"x")
    message = await client.failed(grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "words" not in message and "its log says why" in message
    assert "ValueError: words of a library" in traceback_of(caplog)


async def test_a_defect_in_an_answer_ends_the_answer(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(await serve(replace(fake_backend(), decode=broken)))
    await client.hello()
    await client.ask(1, "?")
    error = await client.expect("error")
    assert (error.request, error.status, error.reason) == (1, grpc.StatusCode.INTERNAL.value[0], "INTERNAL")
    assert "words" not in error.message
    assert "ValueError: words of a library" in traceback_of(caplog)
    await client.end()


async def test_a_defect_while_writing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def write(response: pb.SessionResponse) -> None:
        raise ValueError("words of a library")

    outbox = Outbox(write)
    async with asyncio.timeout(ANSWERED):
        await outbox.send(done=pb.Done())
        await outbox.finish()
    assert "ValueError: words of a library" in traceback_of(caplog)


@pytest.mark.parametrize(
    "defect",
    [
        "backend.load = lambda settings: int('x')",  # at the start
        "backend.load = lambda settings: fake_backend(); access.Access.watch = watch",  # while it serves
    ],
)
def test_a_defect_of_the_server_ends_the_command(defect: str) -> None:
    program = (
        "from edge_server import access, backend, cli; from edge_server.fake import fake_backend\n"
        "async def watch(self, check): int('x')\n"
        f"{defect}\n"
        "cli.app(['serve', '--port', '0'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=10 * ANSWERED)
    assert done.returncode == FAULTY, done.stderr
    assert "Traceback" in done.stderr and "ValueError: invalid literal for int()" in done.stderr
    assert "This is a defect of tofc" in done.stderr
