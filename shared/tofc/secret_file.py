"""Files of credentials that options name: keys, tokens, certificates.

Promises that a missing one is reported with its option, and that a secret which every user of this machine can read is
refused, with the command that fixes it. A group may read it, because Kubernetes, systemd and certificate tools hand
files to a service that way. Leaves the content to the caller.
"""

from __future__ import annotations

import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from tofc.errors import SecurityError, UsageError


def check_exist(files: Mapping[str, Path | None], remedy: str) -> None:
    """Check that every file given by an option exists. `remedy` ends the message. Raises UsageError."""
    for option, file in files.items():
        if file is not None and not file.exists():  # not is_file: it may be a pipe, as with <(…)
            raise UsageError(f"{option} {file} does not exist; {remedy}")


def check_private(path: Path) -> None:
    """Check that only its owner and group may read a file (a pipe is fine). Raises SecurityError, OSError."""
    mode = path.stat().st_mode
    if sys.platform != "win32" and stat.S_ISREG(mode) and mode & stat.S_IROTH:
        raise SecurityError(
            f"{path} is readable by every user of this machine (mode {stat.S_IMODE(mode):04o}); run: chmod 600 {path} "
            "(or 640 if a group must read it)",
            reason="SECRET_EXPOSED",
        )
