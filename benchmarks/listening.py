"""A server as a process of its own, for as long as a benchmark needs it.

Leaves what it serves, and how it is asked, to the benchmarks.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def listening(
    command: Sequence[str], *, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, int]]:
    """Run a command that starts a server; yield its address and process id once it listens, and end it afterwards.

    Ends the program with a sentence if the server ends before.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment) as server:
        try:
            assert server.stdout is not None
            address = next((line.split()[-1] for line in server.stdout if line.startswith("listening on ")), None)
            if address is None:
                sys.exit(f"the server ended with {server.wait()} before it listened; its output above says why")
            yield address, server.pid
        finally:
            server.terminate()
