"""Files that hold a secret: a key or a token.

Promises that one which every user of this machine may read is refused, with the command that mends it. A group may
read: that is how Kubernetes, systemd and certificate tools hand a file to a service. Leaves its content to its reader.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

from shared.rpc.errors import UnsafeAddressError


def check_private(path: Path) -> None:
    """Raises UnsafeAddressError, OSError. (A pipe, as of <(…), has no other reader.)"""
    mode = path.stat().st_mode
    if sys.platform != "win32" and stat.S_ISREG(mode) and mode & stat.S_IROTH:
        raise UnsafeAddressError(
            f"{path} is readable by every user of this machine (mode {stat.S_IMODE(mode):04o}); run: chmod 600 {path} "
            "(or 640, where a group has to read it)",
            reason="SECRET_EXPOSED",
        )
