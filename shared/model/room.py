"""Whether memory and disk are large enough, asked before the work and not after it.

Promises nothing where the system does not say (other systems than Linux): then the work is tried.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


class RoomError(OSError):
    """Too little memory or disk; the message says how much is needed and how much there is."""


def free_memory() -> int | None:
    """Bytes that can still be used, within the container's limit where there is one; None if nobody says."""
    found = []
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        pass
    try:
        limit, used = (
            (_CGROUP / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current")
        )
        if limit != "max":
            pages = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
            found.append(int(limit) - int(used) + int(pages["file"]))  # pages of files can go
    except (OSError, ValueError, KeyError):
        pass
    return min(found, default=None)


def need_memory(size: int, what: str) -> None:
    """Raises ``RoomError`` if ``what`` cannot have ``size`` bytes of memory."""
    free = free_memory()
    if free is not None and free < size:
        raise RoomError(
            f"{what} needs {_gb(size)} of memory and {_gb(free)} are free; end other programs, take a smaller type of "
            "number, or use a larger machine"
        )


def need_disk(size: int, folder: Path, what: str, over: Iterable[Path] = ()) -> None:
    """Raises ``RoomError`` if ``what`` cannot have ``size`` bytes below ``folder``, which need not exist yet.

    Files of ``over`` are part of it: as far as they exist, they are kept or written over.
    """
    size -= sum(file.stat().st_size for file in over if file.exists())
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        raise RoomError(
            f"{what} needs {_gb(size)} of disk and {folder} has {_gb(free)} free; make room or name another folder"
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
