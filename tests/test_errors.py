"""One tree of errors: as the module's docstring draws it, and every exception class of the project is in it."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from pathlib import Path

import pytest

from tofc import errors
from tofc.errors import CallError, Error, Status

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("shared/tofc", "device_client", "edge_server", "lab/tofc_lab")
#: helpers that are caught where they are raised, or by the engine whose folder they are in: none reaches a caller
PRIVATE = {
    "shared/tofc/model/image_metadata.py: _Unexpected",
    "device_client/batch_out.py: _NoLocks",
    "device_client/endpoint/app.py: ClientGone",
    "device_client/endpoint/errors.py: ApiError",
    "shared/tofc/quick_options.py: _NotQuick",
    *(
        f"edge_server/engine/faults.py: {name}"
        for name in ("BrokenOffError", "NonsenseError", "RefusedError", "UnreachableError")
    ),
}
LINE = re.compile(
    r"    (?P<stem>(?:[│ ]   )*(?:[├└]── )?)(?P<name>\w+Error|Error)(?: \((?P<more>\w+)\))?(?P<rest>  .*)?"
)
BUILTIN = {name: kind for name, kind in vars(builtins).items() if inspect.isclass(kind)}


def drawn() -> dict[str, tuple[list[str], Status | None]]:
    """Class → its bases and, of a call error, its status, from the docstring; a status is that of the class above."""
    found: dict[str, tuple[list[str], Status | None]] = {}
    above: list[str] = []
    assert errors.__doc__ is not None
    for line in errors.__doc__.splitlines():
        if not (match := LINE.fullmatch(line)):
            continue
        depth = len(match["stem"]) // 4
        parent = above[depth - 1] if depth else "Exception"
        status = found[parent][1] if depth else None
        last = (match["rest"] or "").split()[-1:]
        if last and last[0] in Status.__members__:
            status = Status[last[0]]
        found[match["name"]] = ([parent, *([match["more"]] if match["more"] else [])], status)
        above[depth:] = [match["name"]]
    return found


def test_the_tree_in_the_docstring_is_that_of_the_classes() -> None:
    classes = {
        name: ([base.__name__ for base in kind.__bases__], kind.status if issubclass(kind, CallError) else None)
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, BaseException)
    }
    assert drawn() == classes


def bases_of(tree: ast.Module) -> dict[str, list[str]]:
    """Every class of a module, with the last part of its bases' names."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            found[node.name] = [
                base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in node.bases
            ]
    return found


def exceptions_outside_the_tree() -> set[str]:
    found: set[str] = set()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.is_relative_to(ROOT / "shared/tofc/v1"):
                continue
            classes = bases_of(ast.parse(path.read_text(encoding="utf-8")))

            def kinds(name: str, classes: dict[str, list[str]] = classes) -> set[type]:
                if name in classes:
                    return {kind for base in classes[name] for kind in kinds(base)}
                kind = vars(errors).get(name) or BUILTIN.get(name)
                return {kind} if inspect.isclass(kind) else set()

            for name in classes:
                roots = {kind for kind in kinds(name) if issubclass(kind, BaseException)}
                if (
                    roots
                    and not any(issubclass(kind, Error) for kind in roots)
                    and path != ROOT / "shared/tofc/errors.py"
                ):
                    found.add(f"{path.relative_to(ROOT).as_posix()}: {name}")
    return found


def test_every_exception_of_the_project_is_in_the_tree() -> None:
    assert exceptions_outside_the_tree() == PRIVATE


@pytest.mark.parametrize(
    "kind", [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, CallError)]
)
def test_a_call_error_has_a_reason_and_a_sentence(kind: type[CallError]) -> None:
    error = kind()
    assert re.fullmatch("[A-Z][A-Z_]*", error.reason) and str(error) == error.message
    assert re.fullmatch(r"[A-Z].*\.", error.message)
