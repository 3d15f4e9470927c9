"""What all commands of this project have in common: `--version`, shell completion, and how they end.

Promises that a command whose output nobody reads any more ends quietly, that typer's own messages about wrong use
cannot control a terminal, and that a defect ends with its traceback, where to report it, and exit code 70. Leaves the
standard streams to `streams` and the errors that users cause to each command.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from tofc import streams
from tofc.terminal import note, one_line, say
from tofc.version import software_version

FAULTY = 70  # EX_SOFTWARE of sysexits.h
DEFECT = (
    "This is a defect of tofc {version}, not a mistake of yours; please report it with the lines above, as "
    "CONTRIBUTING.md describes."
)


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
        streams.prepare()
        self.leave(streams.exit_code(lambda: self._run(*arguments, **{"prog_name": self._name, **settings})))

    def _run(self, *arguments: Any, **settings: Any) -> None:
        try:
            super().__call__(*arguments, **settings)
        except Exception as error:
            if isinstance(error, BrokenPipeError) or streams.unwritable(error):
                raise  # `streams` turns it into an exit code
            traceback.print_exc()
            note(DEFECT.format(version=software_version()))
            sys.exit(FAULTY)

    def leave(self, code: int) -> NoReturn:
        """End the process."""
        sys.exit(code)
