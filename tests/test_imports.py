"""Which packages may import each other, and which heavy libraries must not be loaded at a start.

Imports are read from the sources, so that one inside a function counts too; what a start loads, from a new interpreter.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("tofc", "device_client", "edge_server", "tofc_lab")
ROOTS = {"tofc": "shared", "tofc_lab": "lab"}  # the source roots that are not the checkout itself
ALLOWED = {
    "tofc": {"tofc"},
    "device_client": {"device_client", "tofc"},
    "edge_server": {"edge_server", "tofc"},
    "tofc_lab": set(OURS),
}
CLIENT = ROOT / "shared" / "tofc" / "client"  # imports both halves, though it is in tofc
TRAINING_ONLY = {"compressai", "matplotlib", "datasets", "easy_vqa", "pyarrow", "scipy"}


def root_of(package: str) -> Path:
    return ROOT / ROOTS.get(package.split("/")[0], "")


def sources(package: str) -> list[Path]:
    found = sorted((root_of(package) / package).rglob("*.py"))
    assert found, f"{package}/ has no Python file: is it still the name of a package?"
    return found


def imported(path: Path) -> Iterator[str]:
    """Yield the full names of all modules that a file imports, also inside functions."""
    parts = path.relative_to(ROOT).parent.parts
    package = parts[1:] if parts[0] in ROOTS.values() else parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize("package", OURS)
def test_packages_import_only_downwards(package: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): sorted(bad)
        for path in sources(package)
        if not path.is_relative_to(CLIENT) and (bad := tops(path) & set(OURS) - ALLOWED[package])
    }
    assert wrong == {}


def test_the_python_client_imports_both_halves_and_nothing_but_the_lab_imports_it() -> None:
    assert set().union(*map(tops, sources("tofc/client"))) & set(OURS) == {"tofc", "device_client", "edge_server"}
    others = [path for package in OURS for path in sources(package) if not path.is_relative_to(CLIENT)]
    users = {path for path in others if any(f"{name}.".startswith("tofc.client.") for name in imported(path))}
    assert {path.relative_to(ROOT).as_posix() for path in users} <= {"shared/tofc/__init__.py"}


@pytest.mark.parametrize("package", ["tofc", "device_client", "edge_server"])
def test_what_only_training_needs_stays_in_the_lab(package: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): sorted(bad) for path in sources(package) if (bad := tops(path) & TRAINING_ONLY)
    }
    assert wrong == {}


@pytest.mark.parametrize("package", ["tofc/codec", "tofc/rpc", "tofc/v1"])
def test_codec_and_wire_do_without_torch(package: str) -> None:
    frameworks = {"torch", "transformers", "safetensors.torch"}
    wrong = {str(path.relative_to(ROOT)): sorted(bad) for path in sources(package) if (bad := tops(path) & frameworks)}
    assert wrong == {}


def loaded_by(module: str) -> set[str]:
    """Return the modules that a new interpreter has loaded after importing one."""
    script = f"import sys, {module}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("tofc", {"torch", "grpc", "numpy", "PIL", "device_client", "edge_server"}),
        ("tofc.client", {"torch", "transformers", "typer", "rich", "edge_server", "tofc_lab"}),
        ("device_client.program", {"torch", "transformers", "typer", "rich", "edge_server", "tofc_lab"}),
        ("device_client.program", {"device_client.mode_choice", "device_client.bench", "device_client.relay"}),
        ("edge_server.cli", {"torch", "transformers", "device_client", "tofc_lab"}),
        ("tofc_lab.cli", {"torch", "transformers", "compressai"}),
        ("tofc.codec.codec", {"torch", "transformers", "grpc"}),
        ("tofc.model.views", {"torch", "transformers", "grpc"}),
        ("tofc.model.tower", {"transformers", "grpc"}),
    ],
)
def test_a_start_loads_only_what_it_needs(module: str, unwanted: set[str]) -> None:
    assert loaded_by(module) & unwanted == set()
