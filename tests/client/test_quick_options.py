"""What is read without typer is what typer reads; what typer refuses or answers itself is left to it."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from device_client.cli import COMMANDS
from tofc.option_groups import with_option_groups
from tofc.quick_options import read_words

ROOT = Path(__file__).resolve().parents[2]
PICTURE = str(ROOT / "models/nano/example.jpg")
ORDINARY = [
    ["ask", PICTURE, "why?"],
    ["ask", PICTURE, PICTURE, "-q", "why?", "--question", "how?", "--question=a=b"],
    ["ask", PICTURE, "", "--server=host:1", "--server", "other:2"],
    ["ask", PICTURE, "why?", "--json", "--timeout", "2.5", "--max-tokens", "7", "--temperature=0", "--tls"],
    ["ask", PICTURE, "why?", "--mode", "image", "--quality", "50", "--scale", "0.5", "--token-file", "missing"],
    ["ask", PICTURE, "why?", "-n", "4", "--show-thinking", "--seed", "12", "--backend", "numpy", "--model", "x"],
    ["ask", "--batch", "lines.jsonl", "--out", "out.jsonl", "--resume"],
    ["ask"],
    ["chat", PICTURE, "--wait", "3"],
    ["inspect", PICTURE, "--out", "map.png"],
    ["bench"],
    ["bench", PICTURE, "--link", "3g", "--link=25KB/s,60ms", "--rounds", "3", "--json"],
]
UNUSUAL = [
    ["ask", "--help"],
    ["ask", PICTURE, "why?", "--unknown"],
    ["ask", PICTURE, "why?", "--timeout"],
    ["ask", PICTURE, "why?", "--timeout", "soon"],
    ["ask", PICTURE, "why?", "--max-tokens", "1.5"],
    ["ask", PICTURE, "why?", "--json=yes"],
    ["ask", PICTURE, "--", "-why?"],
    ["ask", PICTURE, "why?", "--seed", "-1"],
    ["ask", PICTURE, "why?", "-qhow?"],
    ["ask", PICTURE, "why?", "-n4"],
    ["chat"],
    ["inspect", PICTURE],
    ["inspect", PICTURE, PICTURE, "--out", "map.png"],
]
VARIABLES = [
    {},
    {
        "TOFC_DEVICE_SERVER": "there:3 too:4",
        "TOFC_DEVICE_TIMEOUT": "9",
        "TOFC_MODEL": "folder",
        "TOFC_DEVICE_SEED": "4",
    },
    {"TOFC_DEVICE_JSON": "1"},
    {"TOFC_DEVICE_JSON": "0"},
    {"TOFC_DEVICE_PRESET": ""},
    {"TOFC_DEVICE_TIMEOUT": "late"},
]


def by_typer(words: list[str], environment: dict[str, str]) -> dict[str, Any] | None:
    """Return the arguments with which typer calls the command; None if it does not call it."""
    found: list[dict[str, Any]] = []
    app = typer.Typer(pretty_exceptions_enable=False)
    for command, _ in COMMANDS.values():

        @wraps(command)
        def record(**arguments: Any) -> None:
            found.append(arguments)

        app.command()(with_option_groups(record))
    result = CliRunner().invoke(app, words, env=environment)
    assert result.exit_code in (0, 2), result.output
    return found[0] if found else None


def without_none(arguments: dict[str, Any]) -> dict[str, Any]:
    """Leave out what was not given: typer passes a default that the command has itself."""
    return {name: value for name, value in arguments.items() if value not in (None, False, [])}


@pytest.mark.parametrize("environment", VARIABLES, ids=str)
@pytest.mark.parametrize("words", ORDINARY + UNUSUAL, ids=" ".join)
def test_words_are_read_as_typer_reads_them(words: list[str], environment: dict[str, str]) -> None:
    command, _ = COMMANDS[words[0]]
    read = read_words(command, words[1:], environment)
    if read is not None:
        expected = by_typer(words, environment)
        assert expected is not None and without_none(read) == without_none(expected)
    if environment in VARIABLES[:2]:
        assert (read is not None) == (words in ORDINARY)


def test_an_unreadable_file_is_left_to_typer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    (tmp_path / "token").touch()
    command, _ = COMMANDS["ask"]
    assert read_words(command, [PICTURE, "why?", "--token-file", str(tmp_path / "token")], {}) is None


def test_an_ordinary_call_imports_neither_typer_nor_rich_nor_torch() -> None:
    script = (
        "import sys\n"
        "from device_client.program import _call\n"
        "try: _call(['ask', 'missing.jpg', 'why?'])\n"
        "except SystemExit as end: print(end.code)\n"
        "print({name.partition('.')[0] for name in sys.modules}"
        " & {'typer', 'pydantic', 'rich', 'torch', 'transformers', 'edge_server'})"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:2] == ["2", "set()"], done.stderr
    assert done.stderr == "device-client: missing.jpg does not exist; give the path of a picture (JPEG, PNG, WebP, …)\n"
