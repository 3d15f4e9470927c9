"""Files that hold a secret: a key or a token.

Promises that a file which every user of this machine can read is refused, with the command that fixes it. A group may
read it, because Kubernetes, systemd and certificate tools hand files to a service that way. Leaves the content to the
caller.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

from tofc.errors import SecurityError


def check_private(path: Path) -> None:
    """Check that only its owner and group may read a file (a pipe is fine). Raises SecurityError, OSError."""
    mode = path.stat().st_mode
    if sys.platform != "win32" and stat.S_ISREG(mode) and mode & stat.S_IROTH:
        raise SecurityError(
            f"{path} is readable by every user of this machine (mode {stat.S_IMODE(mode):04o}); run: chmod 600 {path} "
            "(or 640 if a group must read it)",
            reason="SECRET_EXPOSED",
        )
