"""Threads of both programs sleep while they wait, unless the user sets otherwise; their number can be set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from device_client.compute import Compute
from tofc.errors import UsageError
from tofc.model.shipped import NANO
from tofc.model.torch_threads import MAX_THREADS, use_passive_waiting

ROOT = Path(__file__).resolve().parents[2]
OPENMP = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Loads a model as the programs do; OpenMP reports on stderr how its threads wait.
DEVICE = """
from pathlib import Path
from device_client.compute import Compute
from device_client.encoder import TowerEncoder
TowerEncoder.open(Path({model!r}), compute=Compute(backend="torch", threads={threads})).load()
"""
SERVER = """
from pathlib import Path
from edge_server.backend import load
from edge_server.settings import ServerSettings
load(ServerSettings(model=Path({model!r}), engine_threads={threads}))
"""
# In a new thread, which uses torch for the first time, as an engine's does.
PRINT_THREADS = """
import threading, torch
asked = threading.Thread(target=lambda: (torch.ones(1000000).sum(), print(torch.get_num_threads())))
asked.start()
asked.join()
import os
os.sys.stdout.flush()
os._exit(0)
"""


def run(program: str, threads: int | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in OPENMP}
    return subprocess.run(
        [sys.executable, "-c", program.format(model=str(NANO), threads=threads) + PRINT_THREADS],
        cwd=ROOT,
        env=clean | {"OMP_DISPLAY_ENV": "true"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )


def asleep(done: subprocess.CompletedProcess[str]) -> bool:
    lines = [line for line in done.stderr.splitlines() if "OMP_WAIT_POLICY" in line]
    assert lines, done.stderr
    return all("PASSIVE" in line for line in lines)


@pytest.mark.parametrize("program", [DEVICE, SERVER])
def test_threads_wait_asleep_and_are_as_many_as_asked_for(program: str) -> None:
    done = run(program, 3, OMP_NUM_THREADS="1")
    assert asleep(done)
    assert done.stdout.split() == ["3"]


@pytest.mark.parametrize("program", [DEVICE, SERVER])
def test_environment_variables_of_openmp_are_obeyed(program: str) -> None:
    done = run(program, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="active")
    assert not asleep(done)
    assert done.stdout.split() == ["1"]


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_a_wait_policy_that_the_user_set_is_kept(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for other in OPENMP:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "5")
    use_passive_waiting()
    assert {other: os.environ[other] for other in OPENMP if other in os.environ} == {name: "5"}


@pytest.mark.parametrize("threads", [0, -1, MAX_THREADS + 1])
def test_numbers_of_threads_out_of_range_are_refused(threads: int) -> None:
    with pytest.raises(UsageError, match=f"--threads must be 1 to {MAX_THREADS}, got {threads}"):
        Compute(threads=threads)


def test_both_commands_check_the_number() -> None:
    def command(*words: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
        )
        assert done.returncode == 2
        return done.stderr

    inspect = ("device_client", "inspect", str(NANO / "example.jpg"), "--out", "map.png")
    assert "--threads must be 1 to 1024, got 0" in command(*inspect, "--threads", "0")
    assert "--threads must be 1 to 1024, got 0" in command(*inspect, TOFC_DEVICE_THREADS="0")
    ask = ("device_client", "ask", str(NANO / "example.jpg"), "what is it?")
    assert "--threads must be 1 to 1024, got 2000" in command(*ask, "--threads", "2000")
    assert "--engine-threads" in command("edge_server", "serve", "--engine-threads", "0")
