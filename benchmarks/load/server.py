"""The server of a load test: `edge-server` as a process, and what it costs.

    python -m benchmarks.load.server endless serve …    `edge-server serve …`, but answers end at their length only
    python -m benchmarks.load.server late serve …       … but prompts are read when all of their views are there

Promises a real server, which differs in nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.listening import listening
from benchmarks.processes import cpu_s, resident_mb

ROOT = Path(__file__).resolve().parents[2]
ENDLESS, LATE = "endless", "late"


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running server."""

    address: str
    pid: int

    @property
    def cpu_s(self) -> float:
        """Seconds of CPU that it has taken."""
        return cpu_s(self.pid)

    @property
    def memory_mb(self) -> float:
        """Resident memory in MB."""
        return resident_mb(self.pid)


@contextmanager
def serving(options: Sequence[str], *, endless: bool = False, ahead: bool = True) -> Iterator[Served]:
    """Run a server with these options of `edge-server serve`.

    `endless`: answers end at their length only. `ahead`: prompts are read while their views arrive.
    """
    changes = [ENDLESS] * endless + [LATE] * (not ahead)
    module = "benchmarks.load.server" if changes else "edge_server"
    command = [sys.executable, "-m", module, *changes, "serve", "--port", "0", "--log-level", "error", *options]
    with listening(command, folder=ROOT) as (address, pid):
        yield Served(address=address, pid=pid)


def main() -> None:
    """Run the command `edge-server` with the changes that its first arguments name."""
    from edge_server import answer, backend
    from edge_server.__main__ import main as run

    def no_stop_tokens(*_: object) -> frozenset[int]:
        return frozenset()

    @asynccontextmanager
    async def wait_only(*_: object) -> AsyncIterator[None]:
        yield

    while sys.argv[1] in (ENDLESS, LATE):
        if sys.argv.pop(1) == ENDLESS:
            backend.stop_tokens = no_stop_tokens
        else:
            answer.reading_ahead = wait_only
    run()


if __name__ == "__main__":
    main()
