"""What all commands of this project have in common: `--version`, and shell completion by their own names.

Promises that typer's own messages about wrong use cannot control a terminal. Leaves how a command ends to `program`,
and the errors that users cause to each command.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from tofc.program import run_program
from tofc.terminal import one_line, say
from tofc.version import software_version


class Commands(TyperGroup):
    """A group of commands. The errors of typer's private copy of click are recognised by their `format_message`."""

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        """Parse the options before the command's name."""
        try:
            return super().make_context(*arguments, **settings)
        except Exception as error:
            raise _printable(error)  # noqa: B904  # the same one

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except EOFError as error:  # typer takes it for Ctrl-D, prints "Aborted." and hides where it came from
            raise RuntimeError("unexpected end of input") from error
        except Exception as error:
            raise _printable(error)  # noqa: B904  # the same one


def _printable(error: Exception) -> Exception:
    if hasattr(error, "format_message"):
        error.message = one_line(str(getattr(error, "message", "")))  # type: ignore[attr-defined]
    return error


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"tofc {software_version()}")
        raise typer.Exit


def _group_options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the group itself, handled by their callbacks."""


class Program(typer.Typer):
    """A group of commands that can be run as a program of this name."""

    def __init__(self, name: str, **settings: Any) -> None:
        defaults = {
            "cls": Commands,
            "callback": _group_options,
            "no_args_is_help": True,
            "pretty_exceptions_enable": False,
        }
        self._name = name  # also under `python -m …`: completion scripts need it
        super().__init__(**{**defaults, **settings})

    def __call__(self, *arguments: Any, **settings: Any) -> NoReturn:
        named = {"prog_name": self._name, **settings}
        self.leave(run_program(lambda: super(Program, self).__call__(*arguments, **named)))

    def leave(self, code: int) -> NoReturn:
        """End the process."""
        sys.exit(code)
