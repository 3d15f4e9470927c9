"""ARCHITECTURE.md shows who imports whom as the code has it, and has a line for every package."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from tests.test_imports import OURS, ROOTS, imported, root_of, sources

ROOT = Path(__file__).resolve().parents[1]


def part(module: str) -> str:
    """Return the package that a module belongs to: in `tofc` and `tofc_lab` a subpackage, else the top-level one."""
    top, *below = module.split(".")
    if top in ROOTS and below and (root_of(top) / top / below[0]).is_dir():
        return f"{top}.{below[0]}"
    return top


def graph() -> str:
    """Return the block for ARCHITECTURE.md: a line for each package with its imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for package in OURS:
        for path in sources(package):
            module = ".".join(path.relative_to(root_of(package)).with_suffix("").parts)
            if module not in ("tofc.__init__", "tofc_lab.__init__"):
                found[part(module)] |= {part(name) for name in imported(path) if name.split(".")[0] in OURS}
    order = {top: at for at, top in enumerate(OURS)}
    names = sorted(found, key=lambda name: (order[name.split(".")[0]], name))
    return "\n".join(f"{name:<24} → {', '.join(sorted(found[name] - {name})) or '–'}" for name in names)


def test_who_imports_whom_is_as_drawn() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn = [block for block in re.findall(r"^```\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL) if " → " in block]
    assert drawn == [graph()], f"ARCHITECTURE.md must show:\n{graph()}"


def test_every_package_has_a_line_among_the_folders() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    folders = {path.parent.relative_to(ROOT) for package in OURS for path in sources(package)}
    assert [str(folder) for folder in sorted(folders) if f"| `{folder}/` |" not in text] == []
