"""A device that is started before its server, both by their commands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.e2e.conftest import MODEL, ROOT


@contextmanager
def running(*words: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.terminate()


def test_the_device_waits_for_its_server(free_port: int) -> None:
    address = f"127.0.0.1:{free_port}"
    asked = ("ask", MODEL / "example.jpg", "what number is on the sign?", "--server", address)
    with ExitStack() as stack:
        asking = stack.enter_context(running("device_client", *asked, "--wait", 100))
        assert asking.stderr is not None
        assert asking.stderr.readline() == f"device-client: no server at {address} yet; waiting up to 100 s\n"
        stack.enter_context(running("edge_server", "serve", "--port", free_port, "--log-level", "warning"))
        out, err = asking.communicate(timeout=120)
        assert (asking.returncode, out) == (0, "42\n"), err
