"""The three standard streams of a command: open from the start, and quiet when nobody reads them any more.

Promises that no file or socket takes the file descriptor of a stream that was closed (after `2>&-` it would receive the
error messages), that printing never fails because the encoding lacks a character, and one exit code for a reader that
has gone. Leaves what is printed to `terminal`; imports nothing slow.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress

INTERRUPTED = 130  # Ctrl-C: what a shell reports for SIGINT
NOT_READ = 141  # nobody reads the output any more: what a shell reports for SIGPIPE
FAILED = 2  # the output could not be written
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)  # EBADF: opened for reading only


def prepare() -> None:
    """Open the standard streams that are closed. Call it before anything else is opened."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def exit_code(command: Callable[[], object]) -> int:
    """Run a command, flush its output and return its exit code."""
    code = 0
    try:
        command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.__context__, BrokenPipeError):  # typer turns it into exit code 1
            code = NOT_READ
    except BrokenPipeError:
        code = NOT_READ
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OSError as error:  # while the help or an error message was printed
        if not unwritable(error):
            raise
        code = FAILED
        with suppress(OSError):
            print(f"the output could not be written: {str(error.strerror).lower()}", file=sys.stderr, flush=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            code = NOT_READ
        except (OSError, ValueError):
            code = code or FAILED
        else:
            continue
        _discard(stream.fileno())
    return code


def unwritable(error: BaseException) -> bool:
    """Tell whether an error means that a standard stream could not be written."""
    return isinstance(error, OSError) and error.errno in _UNWRITABLE


def _discard(number: int) -> None:
    """Send what is still buffered to /dev/null; otherwise Python reports at its exit that it cannot be written."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
