"""A well-behaved device during an attack: how long answers take, whether sessions open, how memory grows.

Promises that all figures of an attack are from one run on one machine, and that faults are kept apart from figures that
are only recorded. Leaves the attacks to `attacks`.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.trust.attacks import ATTACKS
from benchmarks.trust.subject import FAKE, ROOT, Asker, Fault, Server, Subject
from tofc.errors import CallError, EncoderError

MEMORY = 1.3  # allowed memory of the server afterwards, in multiples of that before
SLACK_MB = 100.0  # allowed growth for a server without a model: gRPC allocates that much once
SESSION_S = 10.0  # allowed time to a new session's first answer
LOG_BYTES = 1_000_000  # allowed growth of the log during an attack
#: how slow answers become is only recorded for attacks that look like ordinary clients or occupy gRPC's few threads
RECORDED_ONLY = frozenset({"greedy_sessions", "unread_answers", "hpack_bombs_of_many"})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long each part takes."""

    attack_s: float
    alone: int  # questions asked before the attack, to compare with
    rest_s: float  # the longest wait for memory to be released
    slower: float = 5.0  # allowed 95th percentile of answer times, in multiples of that without an attack


def p95(seconds: list[float]) -> float:
    """Return the 95th percentile."""
    return sorted(seconds)[math.ceil(0.95 * len(seconds)) - 1]


async def attacked(subject: Subject, server: Server, name: str, plan: Plan, seed: int) -> dict[str, Any]:
    """Measure one attack; "faults" lists the requirements that were not met."""
    if not server.alive:
        server.start()
    await _new_session(subject, server, 0.0)  # an earlier attack may have closed its port a moment ago
    async with subject.session(server.port) as session:
        asker = Asker(subject, session)
        for _ in subject.questions:  # a session's set-up does not count as a question's time
            await asker.ask()
        alone = [await asker.ask() for _ in range(plan.alone)]
        before_mb, log_before = server.memory_mb, server.log.stat().st_size
        attack = asyncio.create_task(_attack(subject, server, name, plan.attack_s, seed))
        opening = asyncio.create_task(_new_session(subject, server, plan.attack_s / 3))
        beside, faults = [], []
        peak_mb = before_mb
        while not (attack.done() and opening.done()):
            try:
                beside.append(await asker.ask())
            except (CallError, EncoderError, Fault) as error:
                faults.append(f"question {asker.count}: {error}")
                if len(faults) > 10:
                    await asyncio.sleep(0.1)
            peak_mb = max(peak_mb, server.memory_mb if server.alive else 0)
        counts, new_s = await attack, await opening
    enough_mb = max(before_mb * MEMORY, before_mb + SLACK_MB * (subject.model == FAKE))
    after_mb = await _await_memory(server, enough_mb, plan.rest_s)
    found: dict[str, Any] = {
        "attack": counts,
        "answers_beside": len(beside),
        "p95_ms": {"alone": round(p95(alone) * 1e3, 1), "beside": round(p95(beside or [math.inf]) * 1e3, 1)},
        "new_session_s": round(new_s, 2),
        "memory_mb": {"before": round(before_mb), "peak": round(peak_mb), "after": after_mb and round(after_mb)},
        "log_bytes": server.log.stat().st_size - log_before,
    }
    if name not in RECORDED_ONLY and p95(beside or [math.inf]) > plan.slower * p95(alone):
        faults.append(f"answers took more than {plan.slower:g} times as long as alone")
    if new_s > SESSION_S:
        faults.append(f"a new session took more than {SESSION_S:g} s")
    if after_mb is None:
        faults.append(f"the server ended with {server.exit_code}; its log ends with {server.log_end!r}")
    elif after_mb > enough_mb:
        faults.append(f"memory afterwards is more than {enough_mb:.0f} MB")
    if found["log_bytes"] > LOG_BYTES:
        faults.append(f"the log grew by more than {LOG_BYTES} bytes")
    return {**found, "faults": faults[:10]}


async def _attack(subject: Subject, server: Server, name: str, seconds: float, seed: int) -> dict[str, int]:
    """Run an attack in its own process, so that it competes only for the machine."""
    assert name in ATTACKS
    encoder = subject.encoder()
    words = [name, str(server.port), str(seconds), str(seed), encoder.model_id, encoder.codec_id]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.trust.attacker", *words, cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},
    )  # fmt: skip
    try:
        async with asyncio.timeout(seconds + 60):
            printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise Fault(f"the attack {name} ended with {process.returncode}")
    counts: dict[str, int] = json.loads(printed)
    if not counts:
        raise Fault(f"the attack {name} did nothing")
    return counts


async def _new_session(subject: Subject, server: Server, wait_s: float) -> float:
    """Open a session during an attack; return the seconds to its first answer, including failed attempts."""
    await asyncio.sleep(wait_s)
    started = time.monotonic()
    while time.monotonic() - started < 3 * SESSION_S:
        async with subject.session(server.port) as session:
            try:
                async with asyncio.timeout(3 * SESSION_S):
                    await Asker(subject, session).ask()
                return time.monotonic() - started
            except (CallError, TimeoutError):
                await asyncio.sleep(0.1)
    return math.inf


async def _await_memory(server: Server, enough_mb: float, most_s: float) -> float | None:
    """Wait until memory is low enough, but not longer than `most_s`; return it, or None if the process ended."""
    until = time.monotonic() + most_s
    while server.alive and server.memory_mb > enough_mb and time.monotonic() < until:
        await asyncio.sleep(0.1)
    return server.memory_mb if server.alive else None


async def unread_log(subject: Subject, server: Server, plan: Plan, seed: int) -> dict[str, Any]:
    """Measure a server whose stderr is a full pipe that nobody reads, while streams are reset."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    try:
        server.start(stderr=writing)
    finally:
        os.close(writing)
    try:
        found = await attacked(subject, server, "resets", plan, seed)
        started = time.monotonic()
        code = await asyncio.to_thread(server.stop)
        found["sigterm_s"] = round(time.monotonic() - started, 2)
        if code not in (0, -signal.SIGTERM):
            found["faults"].append(f"SIGTERM ended the server with {code}")
        return found
    finally:
        os.close(reading)
