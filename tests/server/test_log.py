"""A log that nobody reads, or that is flooded, does not affect the service."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

from edge_server.log import MAX_ALIKE, MAX_WAITING, QueuedLog
from tests.server.raw_client import ANSWERED, RawClient
from tofc.rpc.channel import dial

SERVER = (
    "import sys; from edge_server import backend, cli; from edge_server.fake import fake_backend; "
    "backend.load = lambda settings: fake_backend(); cli.app(['serve', '--port', '0', '--log-level', 'debug'])"
)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def logger(pipe: tuple[int, int]) -> Iterator[logging.Logger]:
    """Return a logger that writes into the pipe."""
    logger, handler = logging.Logger("some.module"), QueuedLog(pipe[1])
    logger.addHandler(handler)
    yield logger
    handler.close()


def read(pipe: tuple[int, int], until: Callable[[str], bool]) -> str:
    text = ""
    while not until(text):
        text += os.read(pipe[0], 65536).decode()
    return text


def test_lines_come_in_order_with_level_and_name(logger: logging.Logger, pipe: tuple[int, int]) -> None:
    logger.warning("one %d", 1)
    logger.error("two \udcff\n")
    text = read(pipe, lambda text: "two" in text and text.endswith("\n"))
    assert "WARNING some.module: one 1\n" in text and "ERROR some.module: two \\xff" in text


def test_control_characters_are_written_out(logger: logging.Logger, pipe: tuple[int, int]) -> None:
    logger.info("%s went away", "\x1b[2J\x9bm")
    assert "some.module: \\x1b[2J\\x9bm went away\n" in read(pipe, lambda text: text.endswith("\n"))


def test_dropped_lines_are_counted(logger: logging.Logger, pipe: tuple[int, int]) -> None:
    count = MAX_WAITING + 500
    for number in range(count):
        logger.warning(f"{number:024} {'x' * 1000}")  # a pipe holds some sixty of them
    text = read(pipe, lambda text: text.count("\n") >= MAX_WAITING)
    logger.warning("the next")
    text += read(pipe, lambda text: "the next" in text)
    dropped = sum(map(int, re.findall(r"(\d+) lines were dropped", text, re.M)))
    assert dropped + text.count("xxx\n") == count and dropped >= 400


def test_a_flood_of_similar_lines_is_counted_instead(
    logger: logging.Logger, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("edge_server.log.time.monotonic", lambda: now[0])
    for number in range(MAX_ALIKE + 25):
        logger.error("Task exception was never retrieved %d", number)
    logger.error("something else")
    now[0] += 60
    logger.error("later")
    text = read(pipe, lambda text: "later" in text)
    assert text.count("never retrieved") == MAX_ALIKE and "something else" in text
    assert "25 more lines of some.module that begin with 'Task exception was never' were left out" in text


async def test_a_server_whose_log_is_not_read_serves_and_stops() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:  # full before the server writes its first line
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, stdout=asyncio.subprocess.PIPE, stderr=writing
    )
    os.close(writing)
    try:
        async with asyncio.timeout(ANSWERED):
            assert process.stdout is not None
            address = (await process.stdout.readline()).decode().split()[-1]
            async with dial(address) as channel:
                for _ in range(30):
                    client = RawClient(channel)
                    await client.hello()
                    await client.ask(1, "still there")
                    assert (await client.answer(1))[0] == "still there"
                    await client.end()
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        os.close(reading)
        if process.returncode is None:
            process.kill()
            await process.wait()
