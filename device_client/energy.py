"""Joules, where the platform tells: RAPL's counters on x86, the INA3221 power sensors of a Jetson.

    /sys/class/powercap/intel-rapl:N/energy_uj ────────── counter, wraps ──┐
    /sys/bus/i2c/drivers/ina3221*/…/hwmon*/in1_input × curr1_input ─ watts ─┴─ joules so far

Promises energy that was measured, of the whole machine (packages, or the board's input), or the reason why there is
none. Leaves to the caller that other programs, a server on the same machine among them, take their part of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

SYSFS = Path("/sys")
SAMPLE_S = 0.05  # between two readings of a power sensor
_REST = "VIN_SYS_5V0"  # of an AGX Orin: what its board takes beside the rails of GPU and CPU
_TOTALS = (("VDD_IN",), ("POM_5V_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", _REST))  # a Jetson's whole board, by its model


class EnergyMeter(Protocol):
    """Counts energy from when it was opened."""

    name: str

    def joules(self) -> float:
        """Return the joules so far."""

    def close(self) -> None:
        """Stop counting."""


@dataclass(frozen=True, kw_only=True)
class NotMeasurable:
    """Why there is no meter."""

    why: str

    def __str__(self) -> str:
        return f"not measurable here ({self.why})"


def open_meter(sysfs: Path = SYSFS) -> EnergyMeter | NotMeasurable:
    """Open the meter of this machine: RAPL, else a Jetson's sensors. Nobody has tried it on a Jetson."""
    try:
        if packages := _packages(sysfs):
            return RaplMeter(packages)
        if rails := _rails(sysfs):
            return InaMeter(rails)
    except PermissionError as error:
        return NotMeasurable(why=f"{error.filename} may not be read: run as root, or let your user read it")
    except (OSError, ValueError) as error:
        return NotMeasurable(why=f"the sensor cannot be read: {error}")
    return NotMeasurable(why="neither RAPL in /sys/class/powercap nor an INA3221 sensor")


class RaplMeter:
    """The sum of all processor packages."""

    name = "RAPL"

    def __init__(self, packages: Sequence[Path]) -> None:
        """Read every counter once. Raises OSError, ValueError."""
        self._packages = packages
        self._range_uj = [_number(one / "max_energy_range_uj") for one in packages]
        self._last_uj = self._read()
        self._sum_uj = 0

    def joules(self) -> float:
        """Return the joules so far. Must be called before a counter wraps twice, which takes minutes."""
        now = self._read()
        for last, new, range_uj in zip(self._last_uj, now, self._range_uj, strict=True):
            self._sum_uj += new - last + (range_uj + 1 if new < last else 0)
        self._last_uj = now
        return self._sum_uj / 1e6

    def close(self) -> None:
        """Do nothing: the processor counts."""

    def _read(self) -> list[int]:
        return [_number(one / "energy_uj") for one in self._packages]


class InaMeter:
    """A Jetson's input power, read in a thread and summed up."""

    name = "INA3221"

    def __init__(
        self,
        rails: Sequence[Callable[[], float]],
        sample_s: float = SAMPLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read every rail once, in watts, and start the thread. Raises OSError, ValueError."""
        self._rails, self._clock = rails, clock
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._joules, self._at_s, self._watts = 0.0, clock(), self._read()
        self._thread = threading.Thread(target=self._sample, args=(sample_s,), name="energy", daemon=True)
        self._thread.start()

    def joules(self) -> float:
        """Return the joules so far."""
        with self._lock:
            now_s, watts = self._clock(), self._read()
            self._joules += (now_s - self._at_s) * (watts + self._watts) / 2
            self._at_s, self._watts = now_s, watts
            return self._joules

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def _sample(self, sample_s: float) -> None:
        while not self._ended.wait(sample_s):
            self.joules()

    def _read(self) -> float:
        return sum(rail() for rail in self._rails)


def _packages(sysfs: Path) -> list[Path]:
    """Return the zones of whole packages: their parts (core, dram, …) are in them, or would be counted twice."""
    zones = sorted((sysfs / "class/powercap").glob("intel-rapl:*"))
    return [zone for zone in zones if (zone / "name").read_text(encoding="utf-8").startswith("package")]


def _rails(sysfs: Path) -> list[Callable[[], float]]:
    """Return what reads watts: the rails that make up the board's input if they are known, else all rails.

    Raises ValueError where the only rail is a part of the input.
    """
    rails: dict[str, Callable[[], float]] = {}
    for label in sorted((sysfs / "bus/i2c/drivers").glob("ina3221*/*/hwmon/hwmon*/in[1-3]_label")):
        channel, folder = label.name[2], label.parent
        volts, amperes = folder / f"in{channel}_input", folder / f"curr{channel}_input"
        if volts.exists() and amperes.exists():  # in mV and mA
            rails[_text(label)] = lambda v=volts, a=amperes: _number(v) * _number(a) / 1e6  # type: ignore[misc]
    for label in sorted((sysfs / "bus/i2c/drivers").glob("ina3221*/*/iio:device*/rail_name_*")):  # before JetPack 5
        power = label.with_name(f"in_power{label.name[-1]}_input")
        if power.exists():  # in mW
            rails[_text(label)] = lambda p=power: _number(p) / 1e3  # type: ignore[misc]
    if rails.keys() == {_REST}:
        raise ValueError(f"it tells {_REST} alone, without what GPU and CPU take")
    names = next((total for total in _TOTALS if rails.keys() >= set(total)), tuple(rails))
    return [rails[name] for name in names]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()


def _number(path: Path) -> int:
    return int(_text(path))
