"""One device asks one server for hours, in a new session now and then: the memory of both must stay flat.

Promises that an interrupted run reports what it measured so far. Leaves the server to `subject`; the device is this
process.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from typing import Any

from benchmarks.processes import resident_mb
from benchmarks.trust.subject import Asker, Server, Subject

EVERY_S = 5.0  # between samples
QUESTIONS = 300  # in a session
FLAT = 1.05  # allowed ratio of the last third's median to the first third's
WARM = 0.1  # share of the run, at its beginning, that does not count: caches fill


async def soak(subject: Subject, server: Server, seconds: float) -> dict[str, Any]:
    """Measure both sides' memory while questions are asked in turn; ends early when cancelled."""
    started, asked, sessions = time.monotonic(), 0, 0
    samples: list[tuple[float, float, float]] = []
    try:
        while time.monotonic() - started < seconds:
            async with subject.session(server.port) as session:
                sessions += 1
                asker = Asker(subject, session)
                while asker.count < QUESTIONS and time.monotonic() - started < seconds:
                    await asker.ask()
                    asked += 1
                    now = time.monotonic() - started
                    if now - (samples[-1][0] if samples else -EVERY_S) >= EVERY_S:
                        samples.append((now, server.memory_mb, resident_mb(os.getpid())))
                        progress = f"{now:.0f} of {seconds:.0f} s, {asked} questions, server {samples[-1][1]:.0f} MB"
                        print(f"\r{progress}, device {samples[-1][2]:.0f} MB ", end="", file=sys.stderr, flush=True)
    except asyncio.CancelledError:
        pass
    print(file=sys.stderr)
    return {
        "seconds": round(time.monotonic() - started),
        "questions": asked,
        "sessions": sessions,
        **summary(samples),
    }


def summary(samples: list[tuple[float, float, float]]) -> dict[str, Any]:
    """Summarise samples of (seconds, MB of the server, MB of the device); "faults" says whose memory grew."""
    kept = [one for one in samples if one[0] >= WARM * samples[-1][0]]
    if len(kept) < 6:
        return {"faults": [f"{len(kept)} memory samples are too few; run it for at least a minute"]}
    third = len(kept) // 3
    found: dict[str, Any] = {}
    faults = []
    for column, name in ((1, "server"), (2, "device")):
        parts = (kept[:third], kept[third:-third], kept[-third:])
        first, middle, last = (statistics.median(one[column] for one in part) for part in parts)
        slope = statistics.linear_regression([one[0] for one in kept], [one[column] for one in kept]).slope
        found[f"{name}_mb"] = {
            "first_third": round(first, 1),
            "middle_third": round(middle, 1),
            "last_third": round(last, 1),
        }
        found[f"{name}_mb_an_hour"] = round(slope * 3600, 1)
        if last > FLAT * first:
            faults.append(f"the {name}'s memory grew from {first:.0f} to {last:.0f} MB")
    return {**found, "faults": faults}
