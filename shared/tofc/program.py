"""How every command of this project ends: quietly if nobody reads its output, with a traceback if it has a defect.

Promises exit code 70 and where to report it for a defect. Imports nothing slow, and leaves the standard streams to
`streams`, options to `command` and `quick_options`, and the errors that users cause to each command.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from tofc import streams
from tofc.terminal import note
from tofc.version import software_version

FAULTY = 70  # EX_SOFTWARE of sysexits.h
DEFECT = (
    "This is a defect of tofc {version}, not a mistake of yours; please report it with the lines above, as "
    "CONTRIBUTING.md describes."
)


def run_program(work: Callable[[], object]) -> int:
    """Run a program's work and return its exit code."""
    streams.prepare()
    return streams.exit_code(lambda: _shown(work))


def _shown(work: Callable[[], object]) -> None:
    try:
        work()
    except Exception as error:
        if isinstance(error, BrokenPipeError) or streams.unwritable(error):
            raise  # `streams` turns it into an exit code
        import traceback

        traceback.print_exc()
        note(DEFECT.format(version=software_version()))
        sys.exit(FAULTY)
