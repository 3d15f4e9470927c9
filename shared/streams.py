"""The three standard streams of a command: open from its first moment, and quiet when their reader has gone.

Promises that no file or socket gets the number of a stream that was closed (`2>&-` would send it what is meant for
people), that nothing printed fails for want of a character, and one exit code for a reader that has gone. Leaves what
is printed to `terminal`; imports nothing that takes time.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress

INTERRUPTED = 130  # Ctrl-C, as shells count it
NOT_READ = 141  # nobody reads the output any more: what a shell reports of other programs, which SIGPIPE ends
FAILED = 2  # what was printed could not be written
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)  # EBADF: opened for reading only


def prepare() -> None:
    """To be called before anything else is opened."""
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
    """Run a command; the exit code that it ends with. Its output is written by then."""
    code = 0
    try:
        command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.__context__, BrokenPipeError):  # typer makes 1 of it
            code = NOT_READ
    except BrokenPipeError:
        code = NOT_READ
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OSError as error:  # of help, or of a sentence about what went wrong
        if error.errno not in _UNWRITABLE:
            raise
        code = FAILED
        with suppress(OSError):
            print(f"the output could not be written: {os.strerror(error.errno).lower()}", file=sys.stderr, flush=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            code = NOT_READ
        except (OSError, ValueError):
            code = code or FAILED
        else:
            continue
        _forget(stream.fileno())
    return code


def _forget(number: int) -> None:
    """Else Python complains at its end about what is still to be written."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
