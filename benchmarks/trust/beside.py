"""A good device beside an attack: how long its answers take, whether a new session opens, what memory is left.

Promises that all figures of an attack are of one run on one machine, and that what must hold is told from what is only
noted. Leaves the attacks to `attacks`.
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
from device_client.errors import EncoderError
from shared.rpc.errors import TofcError

MEMORY = 1.3  # times what it was before
SLACK_MB = 100.0  # or, of a server without a model, so much more: gRPC keeps it once
SESSION_S = 10.0  # until a new session's first answer
LOG_BYTES = 1_000_000  # of an attack
#: How slow answers become is noted only: beside clients like any other a good one has its share, and gRPC has few
#: threads at first.
NOTED = frozenset({"greedy_sessions", "unread_answers", "hpack_bombs_of_many"})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long each part takes."""

    attack_s: float
    alone: int  # questions
    rest_s: float  # at most, for memory to be given back
    slower: float = 5.0  # than alone, at most: the 95th percentile


def p95(seconds: list[float]) -> float:
    return sorted(seconds)[math.ceil(0.95 * len(seconds)) - 1]


async def attacked(subject: Subject, server: Server, name: str, plan: Plan, seed: int) -> dict[str, Any]:
    """One attack's figures, with "faults": what did not hold."""
    if not server.alive:
        server.start()
    await _new_session(subject, server, 0.0)  # what came before may have cost it its port a moment ago
    async with subject.session(server.port) as session:
        asker = Asker(subject, session)
        for _ in subject.questions:  # what a session costs once is not a question's
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
            except (TofcError, EncoderError, Fault) as error:
                faults.append(f"question {asker.count}: {error}")
                if len(faults) > 10:
                    await asyncio.sleep(0.1)
            peak_mb = max(peak_mb, server.memory_mb if server.alive else 0)
        did, new_s = await attack, await opening
    enough_mb = max(before_mb * MEMORY, before_mb + SLACK_MB * (subject.model == FAKE))
    after_mb = await _rest(server, enough_mb, plan.rest_s)
    found: dict[str, Any] = {
        "attack": did,
        "answers_beside": len(beside),
        "p95_ms": {"alone": round(p95(alone) * 1e3, 1), "beside": round(p95(beside or [math.inf]) * 1e3, 1)},
        "new_session_s": round(new_s, 2),
        "memory_mb": {"before": round(before_mb), "peak": round(peak_mb), "after": after_mb and round(after_mb)},
        "log_bytes": server.log.stat().st_size - log_before,
    }
    if name not in NOTED and p95(beside or [math.inf]) > plan.slower * p95(alone):
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
    """Run in a process of its own, which competes for nothing but the machine."""
    assert name in ATTACKS
    encoder = subject.encoder()
    words = [name, str(server.port), str(seconds), str(seed), encoder.model_id, encoder.codec_id]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.trust.attacker", *words, cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},
    )  # fmt: skip
    try:
        async with asyncio.timeout(seconds + 60):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise Fault(f"the attack {name} ended with {process.returncode}")
    did: dict[str, int] = json.loads(said)
    if not did:
        raise Fault(f"the attack {name} did nothing")
    return did


async def _new_session(subject: Subject, server: Server, wait_s: float) -> float:
    """Seconds until a session that is opened in the middle of an attack has its first answer, tries included."""
    await asyncio.sleep(wait_s)
    begun = time.monotonic()
    while time.monotonic() - begun < 3 * SESSION_S:
        async with subject.session(server.port) as session:
            try:
                async with asyncio.timeout(3 * SESSION_S):
                    await Asker(subject, session).ask()
                return time.monotonic() - begun
            except (TofcError, TimeoutError):
                await asyncio.sleep(0.1)
    return math.inf


async def _rest(server: Server, enough_mb: float, most_s: float) -> float | None:
    """Memory as soon as it is little enough, or after a rest; None where the process ended."""
    until = time.monotonic() + most_s
    while server.alive and server.memory_mb > enough_mb and time.monotonic() < until:
        await asyncio.sleep(0.1)
    return server.memory_mb if server.alive else None


async def unread_log(subject: Subject, server: Server, plan: Plan, seed: int) -> dict[str, Any]:
    """A server whose stderr nobody reads, full before its first line, beside streams that are reset."""
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
        begun = time.monotonic()
        code = await asyncio.to_thread(server.stop)
        found["sigterm_s"] = round(time.monotonic() - begun, 2)
        if code not in (0, -signal.SIGTERM):
            found["faults"].append(f"SIGTERM ended the server with {code}")
        return found
    finally:
        os.close(reading)
