"""What the commands of all packages have in common, as typer wants it.

Promises that each ends with its exit code and no traceback when its reader goes, and that what typer itself says about
wrong use cannot steer a terminal. Leaves the streams to `streams`.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from shared import streams
from shared.terminal import one_line


class Commands(TyperGroup):
    """A group of commands. typer has its own copy of click, unnamed, whose errors have a ``message``."""

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        try:
            return super().make_context(*arguments, **settings)
        except Exception as error:
            raise _printable(error)  # noqa: B904  # the same one

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            raise _printable(error)  # noqa: B904  # the same one


def _printable(error: Exception) -> Exception:
    if hasattr(error, "format_message"):
        error.message = one_line(str(getattr(error, "message", "")))  # type: ignore[attr-defined]
    return error


class Program(typer.Typer):
    """An app that may be called as a program."""

    def __init__(self, **settings: Any) -> None:
        shared = {"cls": Commands, "no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False}
        super().__init__(**{**shared, **settings})

    def __call__(self, *arguments: Any, **settings: Any) -> NoReturn:
        streams.prepare()
        self.leave(streams.exit_code(lambda: super(Program, self).__call__(*arguments, **settings)))

    def leave(self, code: int) -> NoReturn:
        sys.exit(code)
