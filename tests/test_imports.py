"""The directions in which packages may import each other, and what must stay light.

Read from the sources, so that an import inside a function counts too; and, for what a start costs,
from a fresh interpreter.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("shared", "device_client", "edge_server", "lab")
ALLOWED = {
    "shared": {"shared"},
    "device_client": {"device_client", "shared"},
    "edge_server": {"edge_server", "shared"},
    "lab": set(OURS),
}
TRAINING_ONLY = {"compressai", "matplotlib", "datasets", "easy_vqa", "scipy"}


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"{package}/ has no Python file: is it still the name of a package?"
    return found


def imported(path: Path) -> Iterator[str]:
    """The full names of all modules that a file imports, wherever in it."""
    package = path.relative_to(ROOT).parent.parts
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
        if (bad := tops(path) & set(OURS) - ALLOWED[package])
    }
    assert wrong == {}


@pytest.mark.parametrize("package", ["shared", "device_client", "edge_server"])
def test_what_only_training_needs_stays_in_the_lab(package: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): sorted(bad) for path in sources(package) if (bad := tops(path) & TRAINING_ONLY)
    }
    assert wrong == {}


@pytest.mark.parametrize("package", ["shared/codec", "shared/rpc"])
def test_codec_and_wire_do_without_torch(package: str) -> None:
    frameworks = {"torch", "transformers", "safetensors.torch"}
    wrong = {str(path.relative_to(ROOT)): sorted(bad) for path in sources(package) if (bad := tops(path) & frameworks)}
    assert wrong == {}


def loaded_by(module: str) -> set[str]:
    """The modules that a fresh interpreter has after importing one."""
    script = f"import sys, {module}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("device_client.cli", {"torch", "transformers", "edge_server", "lab"}),
        ("edge_server.cli", {"torch", "transformers", "device_client", "lab"}),
        ("lab.cli", {"torch", "transformers", "compressai"}),
        ("shared.codec.codec", {"torch", "transformers", "grpc"}),
        ("shared.model.views", {"torch", "transformers", "grpc"}),
        ("shared.model.tower", {"transformers", "grpc"}),
    ],
)
def test_a_start_loads_only_what_it_needs(module: str, unwanted: set[str]) -> None:
    assert loaded_by(module) & unwanted == set()
