"""The first answer of a fresh device process: wall time, CPU time and peak memory, in features and in image mode.

    python -m benchmarks.startup                   # half a minute; writes benchmarks/results/startup.json
    python -m benchmarks.startup --install         # also measures the size of an installed tofc[device]

Starts the real server on 127.0.0.1 and asks it one question about the demo's picture from new processes: with the tower
in numpy, with an image file, with the tower in torch, and round again, so that a busy machine slows all of them alike.
Promises that the answers agree, and that ratios are medians of the ratios within each round. Leaves a device that stays
open to `end_to_end`.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.end_to_end import installed_mb
from benchmarks.listening import listening
from tofc import json_text
from tofc.model.shipped import NANO

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sysconfig.get_path("scripts"))
QUESTION, ANSWER = "what number is on the sign?", "42"
#: One thread, and modules compiled by the first round, as those of an installed package are.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
ENVIRONMENT["OMP_NUM_THREADS"] = "1"
WAYS = {
    "features, numpy": ("--backend", "numpy"),
    "image": ("--mode", "image"),
    "features, torch": ("--backend", "torch"),
}


@contextmanager
def serving(model: Path) -> Iterator[str]:
    """Run a server that takes images too; yield its address."""
    serve = [str(SCRIPTS / "edge-server"), "serve", "--model", str(model), "--port", "0", "--log-level", "warning"]
    with listening([*serve, "--take-images"]) as (address, _):
        yield address


def new_pictures(folder: Path) -> Iterator[Path]:
    """Yield copies of the demo's picture that differ in a corner: a server does not know any of them yet."""
    with Image.open(NANO / "example.jpg") as image:
        plain = image.convert("RGB")
    for number in count():
        plain.paste((number % 256, number // 256, 128), (0, 0, 8, 8))
        plain.save(path := folder / f"{number}.jpg", quality=95)
        yield path


def ask(model: Path, picture: Path, address: str, *words: str) -> dict[str, float]:
    """Ask from a new process; return what it took."""
    command = [str(SCRIPTS / "device-client"), "ask", str(picture), QUESTION]
    command += ["--server", address, "--model", str(model), *words]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - started
        out.seek(0)
        answer = out.read().decode().strip()
    if (process.returncode, answer) != (0, ANSWER):
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode} and answered {answer!r}, not {ANSWER!r}")
    cpu = usage.ru_utime + usage.ru_stime
    return {"wall_ms": wall * 1e3, "cpu_ms": cpu * 1e3, "peak_mb": usage.ru_maxrss * 1.024e-3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=NANO)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "startup.json")
    parser.add_argument("--install", action="store_true", help="also measure the size of an installed tofc[device]")
    chosen = parser.parse_args()
    with serving(chosen.model) as address, tempfile.TemporaryDirectory() as folder:
        pictures = new_pictures(Path(folder))
        rounds = [
            {name: ask(chosen.model, next(pictures), address, *words) for name, words in WAYS.items()}
            for _ in range(chosen.rounds + 1)
        ][1:]  # the first brings pages of libraries and weights into memory
    found: dict[str, Any] = {
        "command": "python -m benchmarks.startup",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, loopback, load {os.getloadavg()[0]:.1f}",
        "rounds": chosen.rounds,
    }
    for name in WAYS:
        found[name] = {
            kind: round(statistics.median(one[name][kind] for one in rounds))
            for kind in ("wall_ms", "cpu_ms", "peak_mb")
        } | {
            f"{kind}_over_image": round(statistics.median(one[name][kind] / one["image"][kind] for one in rounds), 2)
            for kind in ("wall_ms", "cpu_ms")
        }
    if chosen.install:
        found["installed_device_mb"] = round(installed_mb())
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    json_text.write(chosen.out, found)
    print(json_text.dumps(found, indent=1))


if __name__ == "__main__":
    main()
