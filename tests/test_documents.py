"""The documents agree with the repository: links and paths exist, options are listed, README stays short."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import device_client.cli
import edge_server.cli

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "models" / "nano" / "README.md"])
README_WORDS = 900
FOLDERS = "shared|lab|device_client|edge_server|benchmarks|tests|models|protos|docs|[.]ci"


def text_of(document: Path) -> str:
    """Return a document without its code blocks."""
    return re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text_of(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def relative_name(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative_name)
def test_every_link_has_a_target(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative_name)
def test_every_path_that_a_document_names_exists(document: Path) -> None:
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", text_of(document)):
        assert (ROOT / path).exists(), path


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= README_WORDS


def test_every_decision_has_its_four_lines_and_a_place_in_the_index() -> None:
    text = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    index, *chapters = re.split(r"^## ", text.split("\n## Index\n")[1], flags=re.MULTILINE)
    entries = [entry for chapter in chapters for entry in re.split(r"^### ", chapter, flags=re.MULTILINE)[1:]]
    assert len(entries) > 100
    for entry in entries:
        title = entry.splitlines()[0]
        assert f"[{title}](#" in index, title
        labels = re.findall(r"^- \*\*([\w ]+):\*\*", entry, re.MULTILINE)
        assert labels == ["Chosen", "Instead of", "Measured", "Where"], title


def options(program: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield the options of a program's commands, not of the program itself, with their environment variables."""
    for name, command in getattr(program, "commands", {}).items():
        yield from options(command, (*path, name))
    for parameter in program.params if path else ():
        if parameter.param_type_name == "option" and parameter.name != "help":
            variables = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar or []
            yield parameter.opts[0], ", ".join(variables)


@pytest.mark.parametrize(
    ("heading", "app"),
    [("device-client", device_client.cli.app), ("edge-server", edge_server.cli.app)],
    ids=["device-client", "edge-server"],
)
def test_the_table_of_options_is_that_of_the_commands(heading: str, app: typer.Typer) -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## Options of {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| `(--[\w-]+)`[^|]*\|([^|]*)\|", section, re.MULTILINE)
    documented = {(option, variables.replace("`", "").strip()) for option, variables in rows}
    assert documented == set(options(typer.main.get_command(app)))
