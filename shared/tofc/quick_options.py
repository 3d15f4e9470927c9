"""Reads a command line without typer, whose import takes longer than a small picture's features.

    words ─ read_words ─┬─ the command's arguments
                        └─ None: anything unusual, which typer then reads, answers or refuses

Promises that what it reads is what typer would read (`tests/client/test_quick_options.py`), from words and environment
variables. Whatever it does not know for certain (help, completion, a missing or odd value) is left to typer. Leaves the
meaning of the options to the command.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from tofc.option_groups import Argument, Option

_NUMBERS = {int: r"-?\d{1,15}", float: r"-?\d{1,15}(\.\d{1,15})?"}


class _NotQuick(Exception):
    """This command line is for typer."""


@dataclass(kw_only=True)
class _Parameter:
    """One option or positional argument of a command."""

    name: str
    kind: type[Any]
    many: bool
    required: bool
    note: Option | Argument
    found: list[str] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        return self.note.names or ("--" + self.name.replace("_", "-"),)

    def value(self, environment: Mapping[str, str]) -> Any:
        """Return what was given; MISSING for nothing."""
        given, variable = self.found, self.note.settings.get("envvar", "")
        if not given and variable in environment:
            if self.kind is bool or (self.many and self.kind is not str) or not environment[variable].strip():
                raise _NotQuick
            given = environment[variable].split() if self.many else [environment[variable]]
        if not given:
            if self.required:
                raise _NotQuick
            return MISSING
        values = [self._converted(one) for one in given]
        return values if self.many else values[-1]

    def _converted(self, text: str) -> Any:
        if self.kind is Path:
            if os.path.lexists(text) and not os.access(text, os.R_OK):
                raise _NotQuick
            return Path(text)
        if self.kind in _NUMBERS and not re.fullmatch(_NUMBERS[self.kind], text, re.ASCII):
            raise _NotQuick
        return True if self.kind is bool else self.kind(text)


def read_words(
    command: Callable[..., Any], words: Sequence[str], environment: Mapping[str, str] = os.environ
) -> dict[str, Any] | None:
    """Return the arguments with which typer would call `command`, groups of options built; None to ask typer.

    Raises what a group's dataclass raises for values that are not allowed.
    """
    groups: dict[str, tuple[type[Any] | None, list[_Parameter]]] = {}
    hints = get_type_hints(command, include_extras=True)
    try:
        for one in inspect.signature(command).parameters.values():
            kind = hints[one.name]
            if isinstance(kind, type) and is_dataclass(kind):
                of_fields = get_type_hints(kind, include_extras=True)
                options = [
                    _parameter(f.name, of_fields[f.name], f.default is MISSING and f.default_factory is MISSING)
                    for f in fields(kind)
                ]
                groups[one.name] = (kind, options)
            else:
                groups[one.name] = (None, [_parameter(one.name, kind, one.default is inspect.Parameter.empty)])
        _assign([option for _, options in groups.values() for option in options], words)
        values = {
            name: {one.name: found for one in options if (found := one.value(environment)) is not MISSING}
            for name, (_, options) in groups.items()
        }
    except _NotQuick:
        return None
    built = {name: kind(**values.pop(name)) for name, (kind, _) in groups.items() if kind is not None}
    return built | {name: value for given in values.values() for name, value in given.items()}


def _parameter(name: str, hint: Any, required: bool) -> _Parameter:
    if get_origin(hint) is not Annotated:
        raise _NotQuick
    kind, *notes = get_args(hint)
    (note,) = (one for one in notes if isinstance(one, (Option, Argument)))
    given = [one for one in get_args(kind) or (kind,) if one is not NoneType]
    many = any(get_origin(one) is list or one is list for one in (kind, *given))
    while get_args(given[0]):
        given = list(get_args(given[0]))
    if len(given) != 1 or given[0] not in (str, int, float, bool, Path):
        raise _NotQuick
    return _Parameter(name=name, kind=given[0], many=many, required=required, note=note)


def _assign(parameters: Sequence[_Parameter], words: Sequence[str]) -> None:
    """Give every word to its parameter."""
    options = {name: one for one in parameters if isinstance(one.note, Option) for name in one.names}
    positional = [one for one in parameters if isinstance(one.note, Argument)]
    rest, left = list(words), []
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if not word.startswith("-") or word == "-":
            left.append(word)
        elif (option := options.get(name)) is None:
            raise _NotQuick
        elif option.kind is bool:
            if equals:
                raise _NotQuick
            option.found.append(name)
        else:
            if not equals and (not rest or rest[0].startswith("-")):
                raise _NotQuick
            option.found.append(value if equals else rest.pop(0))
    if left and (len(positional) != 1 or (len(left) > 1 and not positional[0].many)):
        raise _NotQuick
    if left:
        positional[0].found = left
