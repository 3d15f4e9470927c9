"""Many devices at once, against one real server: all are answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from device_client.encoder import TowerEncoder
from device_client.link import Target
from device_client.session import Session
from tests.e2e.conftest import PICTURES, ServerThread

CLIENTS = 64
ASKED = 2  # questions of each, at the same time
HASTE = 10  # devices come back sooner than they were told, so that the test is short


@pytest.fixture(scope="module")
def small_server() -> Any:
    """A server that takes far fewer questions than are asked."""
    made = ServerThread(engine_parallel=4, engine_queue=8)
    yield made
    made.stop()


async def hurry(seconds: float) -> None:
    await asyncio.sleep(seconds / HASTE)


@asynccontextmanager
async def sessions(
    server: ServerThread, encoder: TowerEncoder, count: int, log: list[str]
) -> AsyncIterator[list[Session]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                Session(Target(address=server.address), encoder, log=log.append, sleep=hurry)
            )
            for _ in range(count)
        ]


async def test_64_clients_with_two_questions_each_are_all_answered(
    small_server: ServerThread, encoder: TowerEncoder, asked: list[dict[str, str]]
) -> None:
    logged: list[str] = []
    line = asked[0]
    async with sessions(small_server, encoder, CLIENTS, logged) as opened:
        pictures = [session.open(PICTURES / line["image"]) for session in opened]
        reports = await asyncio.gather(
            *(
                session.ask([picture], line["question"]).result()
                for session, picture in zip(opened, pictures, strict=True)
                for _ in range(ASKED)
            )
        )
    assert {report.answer.strip() for report in reports} == {line["answer"]}
    assert len(reports) == CLIENTS * ASKED
    refused = [report for report in reports if report.refusals]
    told = [line for line in logged if "is busy; asking again" in line]  # others: a handshake was tried again
    assert refused and len(told) == len(refused), "each was told once, and asked again"
