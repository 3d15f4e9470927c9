"""What the three commands have in common: their version, completion in a shell, and how a defect ends them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from device_client.cli import app as device_client
from edge_server.cli import app as edge_server
from tofc.command import Program
from tofc.errors import UsageError
from tofc.option_groups import with_option_groups
from tofc.version import software_version
from tofc_lab.cli import app as lab

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS: dict[str, Program] = {"device-client": device_client, "edge-server": edge_server, "tofc-lab": lab}
MODULES = {"device-client": "device_client.cli", "edge-server": "edge_server.cli", "tofc-lab": "tofc_lab.cli"}
PATHS = os.pathsep.join(str(ROOT / folder) for folder in ("", "shared", "lab"))


def run(*command: object, script: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command, or a script in a new interpreter, as a user would."""
    words = [str(word) for word in command] or [sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": PATHS, **more}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", PROGRAMS)
def test_version(name: str) -> None:
    result = CliRunner().invoke(PROGRAMS[name], ["--version"])
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"tofc {software_version()}\n", "")


@pytest.mark.parametrize("error", ["ValueError", "KeyError", "TypeError", "EOFError", "ArithmeticError"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_defect_shows_where_it_is_and_what_to_do(name: str, error: str) -> None:
    done = run(
        script=f"from {MODULES[name]} import app\n"
        "@app.command()\n"
        "def broken() -> None:\n"
        f"    raise {error}('the cause')\n"
        "app(['broken'])\n"
    )
    *shown, last = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (70, "")
    assert shown[0] == "Traceback (most recent call last):" and "in broken" in done.stderr
    assert any(line.startswith(error) and "the cause" in line for line in shown)
    assert last == (
        f"This is a defect of tofc {software_version()}, not a mistake of yours; "
        "please report it with the lines above, as CONTRIBUTING.md describes."
    )


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("name", "typed", "offered"),
    [
        ("device-client", "ch", {"chat"}),
        ("device-client", "ask --top", {"--top-p", "--top-k"}),
        ("edge-server", "''", {"serve", "info", "credentials"}),
        ("tofc-lab", "--vers", {"--version"}),
    ],
)
def test_bash_completes_what_is_typed_once_it_is_installed(
    tmp_path: Path, name: str, typed: str, offered: set[str]
) -> None:
    command = tmp_path / "bin" / name
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from {MODULES[name]} import app; app()' \"$@\"\n")
    command.chmod(0o755)
    home = {"HOME": str(tmp_path), "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    shown = run("bash", "-c", f"{name} --show-completion; exit $?", **home)
    assert (shown.returncode, shown.stderr) == (0, "")
    installed = run("bash", "-c", f"{name} --install-completion; exit $?", **home)
    assert installed.returncode == 0 and (tmp_path / ".bashrc").is_file()
    assert shown.stdout.strip() == (tmp_path / ".bash_completions" / f"{name}.sh").read_text().strip()
    function = f"_{name.replace('-', '_')}_completion"
    script = f". ~/.bashrc; COMP_WORDS=({name} {typed}); COMP_CWORD={len(typed.split())}; {function} {name}"
    done = run("bash", "-c", f'{script}; echo "${{COMPREPLY[@]}}"', **home)
    assert (done.returncode, done.stderr, set(done.stdout.split())) == (0, "", offered)


@dataclass(frozen=True, kw_only=True)
class Greeting:
    name: Annotated[str, typer.Option(help="Whom to greet.")]
    loud: Annotated[bool, typer.Option("--loud", envvar="GREETING_LOUD")] = False

    def __post_init__(self) -> None:
        if self.name == "nobody":
            raise UsageError("--name must be somebody")


def test_an_option_group_is_its_options_and_arrives_as_one_value() -> None:
    program, greeted = typer.Typer(), list[tuple[Greeting, int]]()

    @program.command()
    @with_option_groups
    def greet(times: int, greeting: Greeting, more: Annotated[int, typer.Option()] = 0) -> None:
        """Say hello."""
        greeted.append((greeting, times + more))

    run = partial(CliRunner().invoke, program)
    assert run(["3", "--name", "you"], env={"GREETING_LOUD": "1"}).exit_code == 0
    assert greeted == [(Greeting(name="you", loud=True), 3)]
    assert "Missing option '--name'" in run(["3"]).stderr
    assert isinstance(run(["3", "--name", "nobody"]).exception, UsageError)
    told = run(["--help"]).stdout
    assert "Say hello." in told and told.index("--name") < told.index("--loud") < told.index("--more")
