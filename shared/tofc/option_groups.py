"""Options that several commands share, written once as a dataclass whose fields are options.

    @dataclass(frozen=True, kw_only=True)
    class Greeting:
        name: Annotated[str, Option(help="Whom to greet.")] = "you"

    @app.command()
    @with_option_groups
    def greet(greeting: Greeting) -> None: ...      # greet [--name TEXT]

Promises that the order of parameters and fields is the order in --help, that errors which a dataclass raises in
`__post_init__` are raised when the command runs, and that such a dataclass can be used without loading typer. Leaves
parsing to typer and `quick_options`, and the meaning of the options to the dataclasses.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_args, get_origin, get_type_hints


class Option:
    """What `typer.Option` is called with, once a command needs it."""

    def __init__(self, *names: str, **settings: Any) -> None:
        self.names = names
        self.settings = settings


class Argument:
    """What `typer.Argument` is called with, once a command needs it."""

    def __init__(self, **settings: Any) -> None:
        self.names: tuple[str, ...] = ()
        self.settings = settings


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace every parameter whose type is a dataclass by that dataclass's fields, for typer to see."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if is_dataclass(kind) and isinstance(kind, type):
            groups[parameter.name] = kind
            parameters += _options(kind)
        else:
            kept = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=_for_typer(kind))
            parameters.append(kept)

    @wraps(command)
    def run(**values: Any) -> None:
        built = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        command(**values, **built)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options(kind: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(field),
            annotation=_for_typer(hints[field.name]),
        )
        for field in fields(kind)
    ]


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default


def _for_typer(hint: Any) -> Any:
    import typer

    if get_origin(hint) is not Annotated:
        return hint
    kind, *notes = get_args(hint)
    makers: dict[type[Any], Any] = {Option: typer.Option, Argument: typer.Argument}
    converted = [
        makers[type(one)](*one.names, **one.settings) if isinstance(one, (Option, Argument)) else one for one in notes
    ]
    return Annotated[kind, *converted]
