"""A batch whose server is killed, or whose link is cut, again and again: every line is answered once, correctly.

Promises the real device and a server process. If a batch ends because the server was not back in time, it is resumed as
by `--resume`; the result says how often.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from random import Random
from typing import Any

from benchmarks.relay import Relay
from benchmarks.trust.subject import Fault, Server, Subject
from device_client import batch
from device_client.batch_out import open_out
from device_client.sampling import Sampling
from tofc.errors import CallError

log = logging.getLogger(__name__)

BETWEEN_KILLS = 12  # answers, on average
BETWEEN_CUTS = 1500  # bytes, both ways together, on average
LINES = 400  # of a batch while cuts are left
RESUMES = 100


class Batch:
    """A batch: lines of questions with ids, and their answers so far."""

    def __init__(self, subject: Subject, name: str, lines: int) -> None:
        self.subject = subject
        self.resumed = 0
        self.count = lines
        self._out = subject.folder / f"{name}.out.jsonl"
        self._file = subject.folder / f"{name}.jsonl"
        asked = itertools.islice(itertools.cycle(subject.questions), lines)
        self._file.write_text(
            "".join(
                json.dumps({"id": number, "image": str(path), "question": question}) + "\n"
                for number, (path, question) in enumerate(asked)
            ),
            encoding="utf-8",
        )
        self._lines = batch.read_lines(self._file)

    async def run(self, port: int) -> AsyncGenerator[None, None]:
        """Run the batch; yield after each line written."""
        while True:
            try:
                with open_out(self._out, self._lines, questions=self._file, resume=True) as answers:
                    if answers.done == self.count:
                        return
                    async with self.subject.session(port) as session:
                        running = batch.run(
                            session, self._lines[answers.done :], answers.file, sampling=Sampling(), timeout_s=None,
                            warn=lambda said: log.warning("%s", said),
                        )  # fmt: skip
                        async for _ in running:
                            yield
            except CallError as error:
                self.resumed += 1
                log.warning("the batch ended: %s", error)
                if self.resumed > RESUMES:
                    raise Fault(f"the batch ended {self.resumed} times, the last time with: {error}") from error

    def faults(self) -> list[str]:
        """List the wrong, missing and repeated answers."""
        rows = [json.loads(line) for line in self._out.read_text(encoding="utf-8").splitlines()]
        found = [f"line {row['id']} failed: {row['error']}" for row in rows if "error" in row]
        if [row["id"] for row in rows] != list(range(self.count)):
            found.append(f"{len(rows)} answers to {self.count} questions, or not in their order")
        for row, (path, question) in zip(rows, itertools.cycle(self.subject.questions), strict=False):
            if "answer" in row:
                try:
                    self.subject.check(path, question, row["answer"])
                except Fault as fault:
                    found.append(f"line {row['id']}: {fault}")
        return found


async def kills(subject: Subject, server: Server, count: int, rng: Random) -> dict[str, Any]:
    """Kill the server with SIGKILL at random moments; it is started again on its port."""
    gaps = [rng.randrange(1, 2 * BETWEEN_KILLS) for _ in range(count)]
    asked = Batch(subject, "kills", sum(gaps) + BETWEEN_KILLS)
    answered, killed = asyncio.Semaphore(0), 0

    async def kill_repeatedly() -> None:
        nonlocal killed
        for gap in gaps:
            for _ in range(gap):
                await answered.acquire()
            await asyncio.sleep(rng.random() * 0.08)  # so that it happens at any point of the next question
            await asyncio.to_thread(server.kill)
            killed += 1
            await asyncio.to_thread(server.start)

    started = asyncio.get_running_loop().time()
    killer = asyncio.create_task(kill_repeatedly())
    async with aclosing(asked.run(server.port)) as lines:
        async for _ in lines:
            answered.release()
    await killer
    took = asyncio.get_running_loop().time() - started
    return {
        "kills": killed,
        "questions": asked.count,
        "resumed": asked.resumed,
        "seconds": round(took, 1),
        "faults": asked.faults()[:10],
    }


async def cuts(subject: Subject, server: Server, count: int, rng: Random) -> dict[str, Any]:
    """Cut the link after random numbers of bytes, in the middle of whatever is being sent."""
    gaps = [rng.randrange(1, 2 * BETWEEN_CUTS) for _ in range(count)]
    total, resumed, faults, started = 0, 0, list[str](), asyncio.get_running_loop().time()
    async with Relay(server.port, cuts=gaps) as relay:
        for number in itertools.count():
            asked = Batch(subject, f"cuts-{number}", min(LINES, 3 * count))
            async with aclosing(asked.run(relay.port)) as lines:
                async for _ in lines:
                    pass
            total, resumed, faults = total + asked.count, resumed + asked.resumed, faults + asked.faults()
            if relay.cut == count:
                break
        took = asyncio.get_running_loop().time() - started
        return {
            "cuts": relay.cut,
            "links": relay.links,
            "questions": total,
            "resumed": resumed,
            "seconds": round(took, 1),
            "server_mb": round(server.memory_mb),
            "faults": faults[:10],
        }
