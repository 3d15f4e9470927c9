"""What being observed costs a server: CPU of a question with and without metrics, JSON logs and traces; idle sessions.

    python -m benchmarks.observed [--questions N] [--sessions N] [--json OUT]

Servers, one for each way of observing and one more that nobody observes, to show what is noise, get blocks of the same
text questions in turn (A B C C B A), so that what else the machine does hits all alike; the cost is CPU time of the
server's process, from /proc. First with nano, then with an engine that computes nothing and gives each answer as many
tokens as the question has letters, which shows microseconds. Then a server keeps sessions open that ask nothing, each
over its own connection. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import grpc.aio

from benchmarks.processes import cpu_s, resident_mb
from tofc.rpc.channel import dial
from tofc.v1 import tofc_pb2 as pb
from tofc.v1 import tofc_pb2_grpc

#: Ways of observing → options of the server. Traces go to a port where no collector listens.
WAYS: dict[str, list[str]] = {
    "nothing": [],
    "nothing, another server": [],
    "metrics": ["--metrics-port", "0"],
    "metrics, JSON logs, traces": ["--metrics-port", "0", "--log-format", "json", "--trace"],
}
ROUNDS = 4  # each A B C, then C B A
WITHOUT_MODEL = (
    "import sys; from edge_server import backend, cli; from edge_server.fake import fake_backend; "
    "backend.load = lambda settings: fake_backend(); cli.app(sys.argv[1:])"
)
TOKENS = 200  # of a long answer


@dataclass
class Server:
    """A server in a process of its own."""

    process: asyncio.subprocess.Process
    address: str
    metrics: str | None

    @classmethod
    async def start(cls, options: Sequence[str], *, sessions: int = 64, model: bool = True) -> Server:
        program = ["-m", "edge_server"] if model else ["-c", WITHOUT_MODEL]
        words = [*program, "serve", "--port", "0", "--sessions", str(sessions), *options]
        environment = (
            {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"} if "--trace" in words else None
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=environment
        )
        assert process.stdout is not None
        address = (await process.stdout.readline()).decode().split()[-1]
        metrics = (await process.stdout.readline()).decode().split()[-1] if "--metrics-port" in words else None
        return cls(process, address, metrics)

    async def stop(self) -> None:
        self.process.terminate()
        await self.process.wait()


async def open_session(channel: grpc.aio.Channel) -> Any:
    """Open a session; return its call."""
    stub: Any = tofc_pb2_grpc.TofcServiceStub(channel)
    info = await stub.GetServerInfo(pb.GetServerInfoRequest())
    call = stub.Session()
    hello = pb.Hello(client_version="bench", model_id=info.model_id, codec_id=info.codec_id)
    await call.write(pb.SessionRequest(hello=hello))
    assert (await call.read()).HasField("welcome")
    return call


async def ask(server: Server, questions: int, text: str = "is there a cat?") -> float:
    """Ask in one session, one question after the other; return milliseconds of the server's CPU for each."""
    async with dial(server.address) as channel:
        call = await open_session(channel)
        before = cpu_s(server.process.pid)
        for number in range(1, questions + 1):
            await call.write(pb.SessionRequest(asks=[pb.Ask(request=number, question=text)]))
            while not (response := await call.read()).HasField("done"):
                assert not response.HasField("error"), response
        spent = cpu_s(server.process.pid) - before
        await call.done_writing()
        return 1e3 * spent / questions


async def measure_questions(questions: int) -> dict[str, Any]:
    servers = {way: await Server.start(options) for way, options in WAYS.items()}
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    try:
        for server in servers.values():
            await ask(server, 20)  # warm
        for round_number in range(ROUNDS):
            for way in [*WAYS] if round_number % 2 == 0 else [*reversed(WAYS)]:
                found[way].append(await ask(servers[way], questions))
        url = servers["metrics"].metrics
        assert url is not None
        before = cpu_s(servers["metrics"].process.pid)
        for _ in range(100):
            size = len(await asyncio.to_thread(lambda: urllib.request.urlopen(url).read()))
        scrape_ms = 1e3 * (cpu_s(servers["metrics"].process.pid) - before) / 100
    finally:
        for server in servers.values():
            await server.stop()
    ms = {way: statistics.median(values) for way, values in found.items()}
    pairs = zip(found["nothing"], *(found[way] for way in [*WAYS][1:]), strict=True)
    ratios = [[value / base for value in rest] for base, *rest in pairs]
    return {
        "questions_per_block": questions,
        "server_cpu_ms_per_question": {way: round(value, 2) for way, value in ms.items()},
        "blocks_ms": {way: [round(value, 2) for value in values] for way, values in found.items()},
        "ratio_to_nothing": {
            way: {"median": round(statistics.median(one), 3), "of": [round(value, 3) for value in one]}
            for way, one in zip([*WAYS][1:], zip(*ratios, strict=True), strict=True)
        },
        "scrape_cpu_ms": round(scrape_ms, 2),
        "scrape_bytes": size,
    }


async def measure_tokens(questions: int) -> dict[str, Any]:
    servers = {way: await Server.start(options, model=False) for way, options in WAYS.items()}
    short, long = {way: list[float]() for way in WAYS}, {way: list[float]() for way in WAYS}
    try:
        for round_number in range(ROUNDS + 1):
            for way in [*WAYS] if round_number % 2 == 0 else [*reversed(WAYS)]:
                for found, text in ((short, "x"), (long, "x" * TOKENS)):
                    ms = await ask(servers[way], questions, text)
                    if round_number:  # the first one warms
                        found[way].append(ms)
    finally:
        for server in servers.values():
            await server.stop()
    question = {way: statistics.median(values) for way, values in short.items()}
    token = {way: (statistics.median(values) - question[way]) / (TOKENS - 1) for way, values in long.items()}
    return {
        "questions_per_block": questions,
        "server_cpu_ms_per_question": round(question["nothing"], 3),
        "server_cpu_ms_per_token": round(token["nothing"], 4),
        "more_us_per_question": {way: round(1e3 * (ms - question["nothing"])) for way, ms in question.items()},
        "more_us_per_token": {way: round(1e3 * (ms - token["nothing"]), 1) for way, ms in token.items()},
    }


async def measure_idle(sessions: int) -> dict[str, Any]:
    server = await Server.start(WAYS["metrics"], sessions=sessions)
    try:
        await ask(server, 5)
        before = resident_mb(server.process.pid)
        channels, calls = [], []
        for _ in range(sessions):
            # Without the option channels to one address share a connection.
            channel = grpc.aio.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
            channels.append(channel)
            calls.append(await open_session(channel))
        after = resident_mb(server.process.pid)
        for channel in channels:
            await channel.close()
    finally:
        await server.stop()
    return {"sessions": sessions, "mb_before": round(before), "mb_more": round(after - before, 1)}


async def measure(questions: int, sessions: int) -> dict[str, Any]:
    """Return everything that this measures."""
    return {
        "command": f"python -m benchmarks.observed --questions {questions} --sessions {sessions}",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared",
        "questions": await measure_questions(questions),
        "tokens": await measure_tokens(questions),
        "idle": await measure_idle(sessions),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--questions", type=int, default=300, help="in a block")
    parser.add_argument("--sessions", type=int, default=1000, help="that are idle")
    parser.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments.questions, arguments.sessions))
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
