"""docs/protocol.md lists exactly the reasons of errors that the sources contain."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (ROOT / "shared" / "tofc", ROOT / "device_client", ROOT / "edge_server")
REASON = re.compile("[A-Z][A-Z0-9_]+")


def nodes() -> list[ast.AST]:
    """Return every node of the sources' syntax trees, without generated code."""
    files = [path for source in SOURCES for path in sorted(source.rglob("*.py")) if path.parent.name != "v1"]
    return [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]


def constants(found: list[ast.AST]) -> dict[str, str]:
    """Return the values of constants assigned as `NAME = "TEXT"` or `A, B = "TEXT", "TEXT"`."""
    names: dict[str, str] = {}
    for node in (node for node in found if isinstance(node, ast.Assign)):
        (target,) = node.targets[:1]
        several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
        pairs = zip(target.elts, node.value.elts, strict=True) if several else [(target, node.value)]  # type: ignore[attr-defined]
        for name, value in pairs:
            if isinstance(name, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                names[name.id] = value.value
    return names


def texts(node: ast.expr | None, names: dict[str, str]) -> Iterator[str]:
    """Yield the constant strings that an expression can have as its value."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.Name(id=name) if name in names:
            yield names[name]
        case ast.IfExp(body=body, orelse=orelse):
            yield from texts(body, names)
            yield from texts(orelse, names)
        case ast.JoinedStr(values=[ast.FormattedValue(), ast.Constant(value=str(ending))]):  # of a model or a codec
            yield from (f"{what}{ending}" for what in ("MODEL", "CODEC"))


def takes_reason_first(node: ast.AST) -> bool:
    """Whether a node is a class whose constructor has `reason` as its first argument."""
    functions = [
        one for one in getattr(node, "body", ()) if isinstance(one, ast.FunctionDef) and one.name == "__init__"
    ]
    return isinstance(node, ast.ClassDef) and any(
        [argument.arg for argument in function.args.args][1:2] == ["reason"] for function in functions
    )


def expressions(node: ast.AST, first: set[str]) -> Iterator[ast.expr | None]:
    """Yield the expressions that a node uses as a reason."""
    match node:
        case ast.keyword(arg="reason", value=value):
            yield value
        case ast.Assign(targets=[ast.Name(id="reason")], value=value):
            yield value
        case ast.AnnAssign(target=ast.Name(id="reason"), value=value):
            yield value
        case ast.Call(func=ast.Name(id=name), args=[value, *_]) if name in first:
            yield value
        case ast.For(target=ast.Tuple(elts=targets), iter=ast.Tuple(elts=rows)):
            at = [target.id if isinstance(target, ast.Name) else "" for target in targets]
            if "reason" in at:
                yield from (row.elts[at.index("reason")] for row in rows if isinstance(row, ast.Tuple))
        case ast.FunctionDef(args=arguments):
            positional = arguments.args[len(arguments.args) - len(arguments.defaults) :]
            defaults = [*arguments.defaults, *arguments.kw_defaults]
            for argument, default in zip([*positional, *arguments.kwonlyargs], defaults, strict=True):
                if argument.arg == "reason":
                    yield default


def reasons() -> set[str]:
    found = nodes()
    names = constants(found)
    first = {node.name for node in found if isinstance(node, ast.ClassDef) and takes_reason_first(node)}
    said = [text for node in found for value in expressions(node, first) for text in texts(value, names)]
    return {text for text in said if REASON.fullmatch(text)}


def test_the_table_of_reasons_is_that_of_the_sources() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## All reasons\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    documented = re.findall(r"^\| `([A-Z0-9_]+)` \|", section, re.MULTILINE)
    assert len(documented) == len({*documented}), "every reason must have one row"
    assert {*documented} == reasons()
    assert {"NO_MEMORY", "NOT_BACK", "LIMIT_EXCEEDED", "MODEL_MISMATCH", "TOO_SHORT", "LINK_LOST"} <= {*documented}
