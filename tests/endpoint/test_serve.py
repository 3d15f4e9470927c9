"""The command `device-client serve`, as a process."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from device_client.cli import app
from tests.e2e.conftest import ROOT, ServerThread
from tests.endpoint.conftest import WAIT_S
from tests.endpoint.requests import CHAT, NUMBER, ask


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_stopped(edge: ServerThread, number: signal.Signals) -> None:
    import httpx2

    command = [sys.executable, "-m", "device_client", "serve", "--server", edge.address, "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("listening on http://127.0.0.1:") and line.endswith("/v1\n"), line
            url = line.removeprefix("listening on ").strip().removesuffix("/v1")
            found = httpx2.post(f"{url}{CHAT}", json=ask(), timeout=WAIT_S, trust_env=False).json()
            assert found["choices"][0]["message"]["content"] == NUMBER
            process.send_signal(number)
            assert process.wait(WAIT_S) == 0
            assert process.stdout.read() == process.stderr.read() == ""
        finally:
            process.kill()


def test_a_port_that_is_taken_is_named(edge: ServerThread) -> None:
    port = edge.running.port
    result = CliRunner().invoke(app, ["serve", "--server", edge.address, "--port", str(port)])
    assert result.exit_code != 0
    assert f"cannot listen on 127.0.0.1:{port}" in str(result.exception) + result.output
