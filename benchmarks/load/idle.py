"""Sessions that are open and do nothing: memory and CPU of the server."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from benchmarks.load.server import Served
from device_client.link import Link, Target

BATCH = 25  # sessions that are opened at the same time: a server keeps at least 32 streams without Hello
LIMIT_MB = 100.0


async def idle(served: Served, sessions: int, *, model_id: str, codec_id: str, seconds: float) -> dict[str, Any]:
    """Open sessions, each over its own connection, and leave them alone for some seconds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4 * sessions), hard), hard))
    target = Target(address=served.address)
    warm = await Link.open(target, model_id, codec_id)  # what the first session loads is not counted
    before = served.memory_mb
    links: list[Link] = []
    try:
        while len(links) < sessions:
            count = min(BATCH, sessions - len(links))
            links += await asyncio.gather(*(Link.open(target, model_id, codec_id) for _ in range(count)))
        opened, cpu_s = served.memory_mb, served.cpu_s
        await asyncio.sleep(seconds)
        found = {
            "sessions": sessions,
            "server_mb": round(max(opened, served.memory_mb) - before, 1),
            "server_cpu_share": round((served.cpu_s - cpu_s) / seconds, 4),
            "lost": sum(link.failure is not None for link in links),
        }
    finally:
        for link in (*links, warm):
            await link.close()
    faults = [f"{found['lost']} sessions were lost"] if found["lost"] else []
    if sessions <= 1000 and found["server_mb"] > LIMIT_MB:
        faults.append(f"{sessions} idle sessions took {found['server_mb']} MB, at most {LIMIT_MB:g} are allowed")
    return {**found, "faults": faults}
