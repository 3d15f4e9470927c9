"""Clients that each ask one question after another, over real sessions, and what they saw.

Promises that pictures are encoded before the clock runs and that every client has sent its own, so that the times are
those of the server; and that every client asks equally many questions. Leaves the server to `server`.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.load.server import ROOT, Served
from benchmarks.processes import cpu_s
from device_client.encoder import EncoderThread, TowerEncoder
from device_client.link import Target
from device_client.picture import Picture
from device_client.report import Report
from device_client.sampling import Sampling
from device_client.session import Session
from tofc.errors import CallError

PICTURES = ROOT / "tests" / "e2e" / "pictures"
WARM = Sampling(temperature=0.0, max_tokens=1)
TIMEOUT_S = 600.0


@dataclass(kw_only=True)
class Material:
    """Pictures that are encoded already, and questions about them."""

    encoder: TowerEncoder
    asked: list[tuple[Picture, str]]

    @classmethod
    async def prepare(cls, model: Path) -> Material:
        """Encode the test pictures with the device half of a model."""
        encoder = TowerEncoder.open(model)
        thread = EncoderThread(encoder)
        lines = json.loads((PICTURES / "questions.json").read_text(encoding="utf-8"))
        pictures = {name: thread.open(PICTURES / name) for name in dict.fromkeys(line["image"] for line in lines)}
        for picture in pictures.values():
            for index in range(picture.n_packets):
                await thread.view(picture, index)
        thread.close()
        return cls(encoder=encoder, asked=[(pictures[line["image"]], line["question"]) for line in lines])


@dataclass(kw_only=True)
class Seen:
    """What all clients saw."""

    reports: list[Report] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # reasons


async def ask(seen: Seen, session: Session, picture: Picture, question: str, sampling: Sampling) -> None:
    """Ask one question and note what came of it."""
    try:
        seen.reports.append(await session.ask([picture], question, sampling=sampling, timeout_s=TIMEOUT_S).result())
    except CallError as error:
        seen.errors.append(error.reason)


async def measure(
    served: Served, material: Material, *, clients: int, tokens: int, each: int, at_once: int, seed: int
) -> dict[str, Any]:
    """Return one row: `clients` ask `each` questions, `at_once` at a time, for answers of at most `tokens` (0: all)."""
    random = Random(seed)
    sampling = Sampling(temperature=0.0, max_tokens=tokens)
    seen = Seen()

    async def client(session: Session, questions: Sequence[tuple[Picture, str]]) -> None:
        for first in range(0, each, at_once):
            chosen = questions[first : first + at_once]
            await asyncio.gather(*(ask(seen, session, picture, text, sampling) for picture, text in chosen))

    async with AsyncExitStack() as stack:
        sessions = [
            await stack.enter_async_context(Session(Target(address=served.address), material.encoder, wait_s=TIMEOUT_S))
            for _ in range(clients)
        ]
        plans = [random.choices(material.asked, k=each) for _ in sessions]
        for session, plan in zip(sessions, plans, strict=True):  # one after another: they connect and send pictures
            for picture in {id(picture): picture for picture, _ in plan}.values():
                await session.ask([picture], "?", sampling=WARM).result()
        own_s, server_s, started = cpu_s(os.getpid()), served.cpu_s, time.perf_counter()
        await asyncio.gather(*(client(session, plan) for session, plan in zip(sessions, plans, strict=True)))
        seconds = time.perf_counter() - started
        own_s, server_s = cpu_s(os.getpid()) - own_s, served.cpu_s - server_s
    return row(seen, clients, seconds, server_s, own_s)


def row(seen: Seen, clients: int, seconds: float, server_s: float, own_s: float) -> dict[str, Any]:
    """Return what was seen as a row of the result."""
    if not seen.reports:
        raise SystemExit(f"no question was answered: {', '.join(sorted(set(seen.errors)))}")
    first_ms = sorted(report.timings["first_token"] for report in seen.reports)
    tokens = sum(report.usage["new_tokens"] for report in seen.reports)
    return {
        "clients": clients,
        "questions": len(seen.reports),
        "questions_s": round(len(seen.reports) / seconds, 2),
        "tokens_s": round(tokens / seconds, 1),
        "tokens_an_answer": round(tokens / len(seen.reports), 1),
        "first_token_p50_ms": round(statistics.median(first_ms), 1),
        "first_token_p95_ms": round(first_ms[min(int(0.95 * len(first_ms)), len(first_ms) - 1)], 1),
        "refused": len(seen.errors),
        "retried": sum(report.refusals for report in seen.reports),
        "server_cpu_ms_a_token": round(server_s / tokens * 1e3, 3),
        "client_cpu_ms_a_token": round(own_s / tokens * 1e3, 3),
        "load_average": round(os.getloadavg()[0], 1),
    }
