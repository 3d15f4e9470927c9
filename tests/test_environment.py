"""Every option of the three commands is an environment variable too, with the same meaning."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import typer

import device_client.cli
import edge_server.cli
import tofc_lab.cli

PROGRAMS = {
    "device-client": device_client.cli.app,
    "edge-server": edge_server.cli.app,
    "tofc-lab": tofc_lab.cli.app,
}
#: Programs that make a variable for every option themselves, from their commands' names.
PREFIX = {
    name: prefix
    for name, app in PROGRAMS.items()
    if (prefix := typer.main.get_command(app).context_settings.get("auto_envvar_prefix"))
}
#: Options without a variable, and why: one that stays set would do what nobody asked for.
WITHOUT = {
    "device-client ask --question": "several texts, each with spaces",
    "edge-server credentials --renew": "changes credentials at every call",
    "edge-server credentials --finish": "locks devices out",
    "edge-server credentials --replace": "locks devices out",
}


def commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield every command of a program with its full name."""
    below = getattr(command, "commands", {})
    for name, one in below.items():
        yield from commands(one, (*path, name))
    if not below:
        yield " ".join(path), command


def variable(full_name: str, parameter: Any) -> str | None:
    """Return the environment variable of an option: its own, or the one that its program makes for every option."""
    program, *names = full_name.split()
    if parameter.envvar:
        return str(parameter.envvar if isinstance(parameter.envvar, str) else parameter.envvar[0])
    if program not in PREFIX:
        return None
    return "_".join([PREFIX[program], *names, parameter.name]).upper().replace("-", "_")


OPTIONS = [
    pytest.param(full_name, command, parameter, id=f"{full_name} {parameter.opts[0]}")
    for program, app in PROGRAMS.items()
    for full_name, command in commands(typer.main.get_command(app), (program,))
    for parameter in command.params
    if parameter.param_type_name == "option" and parameter.name != "help"
]


def kind_of(command: Any, parameter: Any) -> Any:
    """Return the type of an option or argument, without None."""
    hint = get_type_hints(inspect.unwrap(command.callback)).get(parameter.name)
    if hint is None:  # a field of an option group, which a decorator made a parameter
        hint = inspect.signature(command.callback).parameters[parameter.name].annotation
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    kinds = [one for one in get_args(hint) if one is not NoneType] if get_origin(hint) in (Union, UnionType) else [hint]
    return kinds[0]


def value_for(command: Any, parameter: Any, folder: Path) -> str:
    """Return a text that the option takes and that is not its default."""
    kind = kind_of(command, parameter)
    if get_origin(kind) is Literal:
        return str(next(one for one in get_args(kind) if one != parameter.default))
    return {int: "37", float: "17.5"}.get(kind, str(folder / "value"))


def parse(command: Any, full_name: str, words: list[str]) -> Any:
    """Parse a command's words as its program would, without running it."""
    parent = None
    path = full_name.split()
    for name in path[:-1]:
        settings = {"auto_envvar_prefix": PREFIX[name]} if name in PREFIX else {}
        parent = command.context_class(command, info_name=name, parent=parent, **settings)
    return command.make_context(path[-1], list(words), parent=parent)


@pytest.mark.parametrize(("full_name", "command", "parameter"), OPTIONS)
def test_an_option_and_its_variable_mean_the_same(
    full_name: str, command: Any, parameter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = variable(full_name, parameter)
    if f"{full_name} {parameter.opts[0]}" in WITHOUT:
        assert name is None
        return
    assert name is not None and name.startswith("TOFC_"), "give the option an environment variable"
    required = [
        word
        for one in command.params
        if one.required and one is not parameter
        for word in ([one.opts[0]] if one.param_type_name == "option" else []) + [value_for(command, one, tmp_path)]
    ]
    value = "" if parameter.is_flag else value_for(command, parameter, tmp_path)
    given = parse(command, full_name, [*required, parameter.opts[0], *([value] if value else [])])
    monkeypatch.setenv(name, value or "1")
    read = parse(command, full_name, required)
    assert read.params[parameter.name] == given.params[parameter.name]
    monkeypatch.delenv(name)
    if not parameter.required:
        assert parse(command, full_name, required).params[parameter.name] != read.params[parameter.name]


def test_what_has_no_variable_exists() -> None:
    assert set(WITHOUT) <= {str(option.id) for option in OPTIONS}
