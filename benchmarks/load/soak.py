"""A mixed load for minutes: short and long answers, conversations, new pictures, cancels, sessions that come and go.

Promises samples of the memory of both sides, whose first and last third are compared. Leaves the comparison to
`benchmarks.trust.soak`.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from benchmarks.load.clients import TIMEOUT_S, Material, Seen, ask
from benchmarks.load.server import Served
from benchmarks.processes import resident_mb
from benchmarks.trust.soak import summary
from device_client.link import Target
from device_client.sampling import Sampling
from device_client.session import Session

EVERY_S = 2.0  # between samples
IN_A_SESSION = 20  # things that a client does before it opens another session
SIDES_PX = (336, 448, 672)  # of new pictures
M_ARENA_MAX = -8  # in glibc's malloc.h


async def soak(served: Served, material: Material, *, clients: int, minutes: float, seed: int) -> dict[str, Any]:
    """Run the mixed load and return what was asked, and the memory of both sides."""
    limit_arenas()
    started, seen, counts = time.monotonic(), Seen(), {"answers": 0, "sessions": 0, "cancelled": 0, "pictures": 0}
    samples: list[tuple[float, float, float]] = []

    def running() -> bool:
        return time.monotonic() - started < minutes * 60

    async def client(number: int, folder: Path) -> None:
        random = Random(f"{seed} {number}")
        while running():
            counts["sessions"] += 1
            async with Session(Target(address=served.address), material.encoder, wait_s=TIMEOUT_S) as session:
                for _ in range(IN_A_SESSION):
                    if running():
                        await act(random, session, folder / f"{number}.png")

    async def act(random: Random, session: Session, file: Path) -> None:
        picture, question = random.choice(material.asked)
        kind = random.choice(("short", "short", "long", "chat", "new", "cancel"))
        if kind == "new":
            counts["pictures"] += 1
            side = random.choice(SIDES_PX)
            Image.frombytes("RGB", (8, 8), random.randbytes(192)).resize((side, side)).save(file)
            picture = session.open(file)
        if kind == "cancel":
            counts["cancelled"] += 1
            answer = session.ask([picture], question, sampling=long(random))
            async for _ in answer:
                break
            await answer.aclose()
        elif kind == "chat":
            earlier = [("what is in the picture?", "a tree"), ("and else?", "a cat " * random.randrange(20))]
            await session.ask([picture], question, history=earlier, timeout_s=TIMEOUT_S).result()
        else:
            await ask(seen, session, picture, question, long(random) if kind == "long" else Sampling())
            counts["answers"] += len(seen.reports)
            seen.reports.clear()  # kept, they would be what grows

    async def sample() -> None:
        while running():
            samples.append((time.monotonic() - started, served.memory_mb, resident_mb(os.getpid())))
            asked = f"{counts['answers']} answers, server {samples[-1][1]:.0f} MB"
            print(f"\r{samples[-1][0]:.0f} of {minutes * 60:.0f} s, {asked} ", end="", file=sys.stderr, flush=True)
            await asyncio.sleep(EVERY_S)

    with TemporaryDirectory() as folder:
        await asyncio.gather(sample(), *(client(number, Path(folder)) for number in range(clients)))
    print(file=sys.stderr)
    faults = [f"{len(seen.errors)} questions failed: {', '.join(sorted(set(seen.errors)))}"] if seen.errors else []
    found = summary(samples)
    return {"minutes": minutes, **counts, **found, "faults": faults + found["faults"]}


def limit_arenas() -> None:
    """Give this process two of glibc's arenas instead of eight a core.

    A device has one session for hours, here hundreds come and go. The thread of each may get an arena that none had
    before, and free memory stays in the arena that it was in: that would be what grows.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


def long(random: Random) -> Sampling:
    """Return options of an answer that is longer than nano's own."""
    return Sampling(temperature=5.0, seed=random.getrandbits(32), max_tokens=200)
