"""What the system says about a process: CPU time and memory. Linux only.

Leaves starting and ending processes to the benchmarks.
"""

from __future__ import annotations

import os
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Return the seconds of CPU that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    return status_mb(pid, "VmRSS")


def peak_mb(pid: int) -> float:
    """Return the peak resident memory of a running process in MB."""
    return status_mb(pid, "VmHWM")


def status_mb(pid: int, field: str) -> float:
    """Return a field of /proc/PID/status that counts memory, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1.024e-3 for line in lines if line.startswith(field))
