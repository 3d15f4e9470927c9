"""The program `device-client`: reads the command line, runs the command, and ends the process with its exit code.

    words ─┬─ quick_options ─ an ordinary call of a command ─┬─ command ─ exit code
           └─ typer_app ───── help, completion, wrong use ───┘

Promises that every error a user can cause is one line on stderr and an exit code, and that an ordinary call imports
neither typer nor rich. Leaves the commands to `cli`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from device_client.chat import READER
from device_client.cli import COMMANDS
from device_client.encoder import THREAD
from device_client.exit_codes import INTERRUPTED, exit_code
from tofc.error_text import describe
from tofc.errors import Error
from tofc.out_of_memory import out_of_memory
from tofc.program import run_program
from tofc.quick_options import read_words
from tofc.terminal import note

T = TypeVar("T")


def run(words: Sequence[str]) -> NoReturn:
    """Run the program with the words after its name."""
    leave(run_program(lambda: _call(words)))


def _call(words: Sequence[str]) -> None:
    command, _ = COMMANDS.get(words[0] if words else "", (None, None))
    if command is not None and "_DEVICE_CLIENT_COMPLETE" not in os.environ:
        quick = command
        if reporting(lambda: _called(quick, words[1:])):
            return
    from device_client.typer_app import app

    app(list(words))


def _called(command: Callable[..., None], words: Sequence[str]) -> bool:
    """Call a command; return False if typer has to read its words."""
    arguments = read_words(command, words)
    if arguments is None:
        return False
    command(**arguments)
    return True


def reporting(work: Callable[[], T]) -> T:
    """Run a command; its errors are one line on stderr and an exit code. Other exceptions are defects."""
    logging.getLogger("grpc").setLevel(logging.CRITICAL)
    try:
        return work()
    except BrokenPipeError:  # the reader of the output has gone: `run_program` ends quietly
        raise
    except (Error, OSError, MemoryError) as error:
        note(f"device-client: {describe(error)}")
        raise SystemExit(exit_code(error)) from None
    except RuntimeError as error:  # from torch, if memory runs out while a picture is encoded
        if not out_of_memory(error):
            raise
        note(f"device-client: {describe(MemoryError(str(error)))}")
        raise SystemExit(exit_code(MemoryError())) from None
    except KeyboardInterrupt:
        note("device-client: stopped")
        raise SystemExit(INTERRUPTED) from None


def leave(code: int) -> NoReturn:
    """End the process, at once while the encoder thread imports torch or encodes a large view."""
    if "torch" in sys.modules or any(thread.name in (THREAD, READER) for thread in threading.enumerate()):
        os._exit(code)  # unloading torch takes a second, and may crash if a thread still runs in it
    sys.exit(code)
