"""What `edge-server info` shows of a server, its load and its uptime, and to whom."""

from __future__ import annotations

import asyncio
from pathlib import Path

from typer.testing import CliRunner

from edge_server.cli import _duration, _info_lines, app
from edge_server.engine.fake import FakeEngine
from edge_server.fake import fake_backend, prompt_bytes
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import until
from tofc.v1 import tofc_pb2 as pb

BUSY = ("uptime: ", "sessions: ", "questions: ")


async def info(*arguments: str) -> tuple[int, list[str]]:
    found = await asyncio.to_thread(CliRunner().invoke, app, ["info", *arguments])
    return found.exit_code, found.output.splitlines()


async def test_info_shows_the_load(serve: Serve, connect: Connect) -> None:
    gate = asyncio.Event()
    engine = FakeEngine(lambda prompt: list(prompt_bytes(prompt)), gate=gate)
    server = await serve(fake_backend(engine=engine), sessions=5, engine_parallel=2, engine_queue=1)
    assert (await info(server.address))[1][4:7] == [
        "uptime: less than a minute",
        "sessions: 0 open (at most 5)",
        "questions: 0 running (at most 2), 0 waiting (at most 1)",
    ]
    first, second, third = (connect(server) for _ in range(3))
    for client in (first, second, third):
        await client.hello()
    await first.ask(1, "?")
    await until(lambda: len(engine.prompts) == 1)
    await second.ask(1, "?")
    await until(lambda: len(engine.prompts) == 2)
    await first.ask(2, "?")
    await third.ask(1, "?")  # waits beyond the queue
    await until(lambda: server.service._runtime is not None and server.service._runtime.admission.waiting == 2)
    code, lines = await info(server.address)
    assert code == 0
    assert lines[5:7] == [
        "sessions: 3 open (at most 5)",
        "questions: 2 running (at most 2), 2 waiting (at most 1)",
    ]
    gate.set()
    assert (await second.answer(1))[0] == "?"
    await second.end()
    await until(lambda: server.service._slots.sessions == 2)
    assert "sessions: 2 open (at most 5)" in (await info(server.address))[1]


async def test_without_a_token_nothing_is_shown(serve: Serve, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    token.chmod(0o600)
    server = await serve(token_file=token)
    code, lines = await info(server.address)
    assert code == 1 and len(lines) == 1 and "token" in lines[0]
    code, lines = await info(server.address, "--token-file", str(token))
    assert code == 0 and all(any(line.startswith(start) for line in lines) for start in BUSY)


def test_the_load_of_a_server_of_an_earlier_version_is_left_out() -> None:
    lines = list(_info_lines(pb.GetServerInfoResponse(server_version="0.1", model_id="m")))
    assert lines[0] == "server_version: 0.1" and lines[-1] == "limits.views_per_packet: 0"
    assert not any(line.startswith(BUSY) for line in lines)


def test_uptime_is_shown_to_the_minute() -> None:
    spelled = [_duration(seconds) for seconds in (0, 59, 60, 3599, 3600, 86_400 + 61)]
    assert spelled == ["less than a minute", "less than a minute", "1 min", "59 min", "1 h 0 min", "1 d 0 h 1 min"]
