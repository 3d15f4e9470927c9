"""Every text file is opened with its encoding, whatever the locale, and commands print through `tofc.terminal`.

This is checked in the sources, so that code which no test runs counts too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("shared", "device_client", "edge_server", "lab", "benchmarks")
PRINTERS = {"print", "typer.echo", "echo"}


def calls(package: str) -> Iterator[tuple[str, ast.Call]]:
    """Yield (place, call) of every call of a method or function in a package."""
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    for path in found:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def has_encoding(call: ast.Call) -> bool:
    return any(word.arg == "encoding" for word in call.keywords)


def opens_text(call: ast.Call) -> bool:
    """Whether a call is `PATH.open("r")`, or with another mode for text."""
    modes = [one.value for one in call.args[:1] if isinstance(one, ast.Constant)]
    return any(isinstance(mode, str) and 0 < len(mode) <= 2 and set(mode) <= set("rwax+") for mode in modes)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_text_file_has_its_encoding_named(package: str) -> None:
    wrong = []
    for place, call in calls(package):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        text = name in ("read_text", "write_text") or (name == "open" and opens_text(call))
        wrong += [place] * (text and not has_encoding(call))
    assert wrong == []


@pytest.mark.parametrize("package", ["device_client", "edge_server"])
def test_commands_print_through_the_terminal_module(package: str) -> None:
    """`print` and `typer.echo` would print control characters of untrusted text. Constant text is safe."""
    wrong = []
    for place, call in calls(package):
        called, words = ast.unparse(call.func), [ast.unparse(one) for one in call.args]
        fixed = all(isinstance(one, ast.Constant) for one in call.args)
        made = all("printable(" in one or "one_line(" in one for one in words)
        wrong += [place] * (called in ("print", "typer.echo", "typer.secho") and not fixed and not made)
    assert wrong == []
