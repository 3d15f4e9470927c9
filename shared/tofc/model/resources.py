"""Checks free memory and disk space before work begins.

Promises a `ResourceError` on Linux, and for memory of most accelerators, instead of a crash. Elsewhere free memory is
unknown, and the work is tried.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from tofc.errors import ResourceError
from tofc.model.torch_devices import free_device_memory_bytes

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def free_memory_bytes() -> int | None:
    """Return the free memory, within the container's limit if it has one; None if it is unknown."""
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
            found.append(int(limit) - int(used) + int(pages["file"]))  # the kernel can drop cached file pages
    except (OSError, ValueError, KeyError):
        pass
    return min(found, default=None)


def require_memory(size_bytes: int, what: str, device: str = "cpu") -> None:
    """Raise `ResourceError` unless `size_bytes` of memory are free for `what`, on a device of torch."""
    if device == "cpu":
        free, where, machine = free_memory_bytes(), "", "a machine"
    else:
        free, where, machine = free_device_memory_bytes(device), f" on {device}", "a device"
    if free is not None and free < size_bytes:
        raise ResourceError(
            f"{what} needs {_gb(size_bytes)} of memory{where} and {_gb(free)} are free; end other programs, choose a "
            f"smaller number type (dtype), or use {machine} with more memory"
        )


def require_disk(size_bytes: int, folder: Path, what: str, over: Iterable[Path] = ()) -> None:
    """Raise `ResourceError` unless `size_bytes` of disk are free for `what` in `folder`, which need not exist yet.

    Existing files of `over` count as free space: they are kept or overwritten.
    """
    size_bytes -= sum(file.stat().st_size for file in over if file.exists())
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < size_bytes:
        raise ResourceError(
            f"{what} needs {_gb(size_bytes)} of disk and {folder} has {_gb(free)} free; free some space or name "
            "another folder"
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
