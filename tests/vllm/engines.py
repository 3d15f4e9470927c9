"""vLLM as processes, as a person starts it, and what its /metrics say."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from edge_server.engine.completion_request import CompletionFormat
from edge_server.engine.vllm_remote import VllmRemoteEngine

Remote = Callable[..., Awaitable[VllmRemoteEngine]]  # of the addresses of engines, and changes of the model

ENDLESS = CompletionFormat(dtype="float32", stop_tokens=[])  # nano's answers are short: measured without its stop token
START_S = 400.0  # on two busy cores
BUSY_S = 60.0  # a busy machine may take so long over an answer of /metrics
#: docs/serving.md explains each; a test compares the two
OPTIONS = (
    "--enable-prompt-embeds --dtype float32 --enforce-eager --max-model-len 4096 --max-num-seqs 64 "
    "--max-num-batched-tokens 8192 --block-size 32"
)
ROUTER_OPTIONS = "--policy consistent_hash --health-check-interval-secs 2 --health-failure-threshold 2"
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}


@dataclass
class Process:
    """A server process of its own group on a free port of 127.0.0.1."""

    words: list[str]
    log: Path
    port: int = 0
    running: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def lives(self) -> bool:
        return self.running is not None and self.running.poll() is None

    def start(self) -> None:
        """Start it, again at its old port."""
        self.port = self.port or free_port()
        words = [word.replace("PORT", str(self.port)) for word in self.words]
        with self.log.open("wb") as out:
            self.running = subprocess.Popen(
                words, stdout=out, stderr=out, env=os.environ | self.environment, start_new_session=True
            )

    async def ready(self) -> None:
        """Return when it says that it is well."""
        assert self.running is not None
        async with asyncio.timeout(START_S), httpx2.AsyncClient(trust_env=False) as client:
            while True:
                assert self.running.poll() is None, self.log.read_text()[-3000:]
                try:
                    if (await client.get(f"{self.url}/health")).status_code == 200:
                        return
                except httpx2.HTTPError:
                    await asyncio.sleep(0.5)

    def kill(self) -> None:
        """End it and its workers as a power cut does; harmless when repeated."""
        if self.running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.running.pid, signal.SIGKILL)
            self.running.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def engine(half: Path, log: Path) -> Process:
    """Return vLLM with a server half."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(half)]
    where = ["--host", "127.0.0.1", "--port", "PORT"]
    return Process([*command, *where, *OPTIONS.split()], log, environment=ENVIRONMENT)


def router(engines: list[Process], log: Path) -> Process:
    """Return vllm-router before engines."""
    command = [sys.executable, "-m", "vllm_router.launch_router", "--worker-urls", *(one.url for one in engines)]
    options = f"--host 127.0.0.1 --port PORT {ROUTER_OPTIONS} --prometheus-port {free_port()}"
    return Process([*command, *options.split()], log)


async def metric(one: Process, name: str) -> float:
    """Return the sum of a metric's values."""
    async with httpx2.AsyncClient(trust_env=False, timeout=BUSY_S) as client:
        text = (await client.get(f"{one.url}/metrics")).text
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, re.MULTILINE))
