"""How long a tower takes on a machine that has other work, by its threads and by how these wait for each other.

    python -m benchmarks.busy        # some five minutes on a quiet machine; writes benchmarks/results/busy.json

Every way is a process of its own that has loaded the tower; all take turns, a view each, while none, one or all of
the processors are kept busy by endless loops. Two towers: nano's, and a random one of width 768 and 12 layers.
Promises medians and the slowest tenth, beside one thread's in the same rounds: a machine's own noise meets all alike.
Leaves what to make of it to `shared.model.threads`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from math import prod
from pathlib import Path
from typing import Any

from shared import json_text
from shared.model.config import SplitConfig
from shared.model.released_names import vision_shapes
from shared.model.threads import ASLEEP

ROOT = Path(__file__).resolve().parents[1]
NANO = ROOT / "models" / "nano"
ROUNDS = {"nano": 15, "width 768, 12 layers": 5}
WIDE = {"width": 768, "layers": 12, "heads": 12}
SIDE = 336
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

Way = tuple[int, dict[str, str]]  # threads, and what the environment says of their waiting


def ways() -> dict[str, Way]:
    cores = len(os.sched_getaffinity(0))
    return {
        "one thread": (1, {}),
        "a thread a core, waiting in loops": (cores, {}),
        "a thread a core, waiting in 1 000 loops, then asleep": (cores, {"GOMP_SPINCOUNT": "1000"}),
        "a thread a core, waiting asleep: the default": (cores, dict([ASLEEP])),
    }


def wide(folder: Path) -> Path:
    """The tower of a checkpoint with random weights."""
    import torch
    from safetensors.torch import save_file

    from lab import fake

    raw = fake.config(fake.tokenizer())
    raw["vision_config"] |= WIDE
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    torch.manual_seed(0)
    shapes = vision_shapes(SplitConfig.parse(raw))
    drawn = {name: torch.randn(shape) * prod(shape[1:]) ** -0.5 * 0.1 for name, shape in shapes.items()}
    save_file(drawn, folder / "model.safetensors")
    return folder


def work(model: Path, threads: int) -> None:
    """A view for each line that comes, and its milliseconds as a line that goes."""
    import time

    import numpy as np
    import torch

    from shared.model.checkpoint import Checkpoint
    from shared.model.tower import Tower

    torch.set_num_threads(threads)
    tower = Tower(Checkpoint.open(model, "device"), torch.float32)
    pixels = np.zeros((1, 3, SIDE, SIDE), np.float32)
    for _ in range(2):
        tower.encode(pixels)
    print("ready", flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        tower.encode(pixels)
        print((time.perf_counter() - begun) * 1e3, flush=True)


@contextmanager
def worker(model: Path, way: Way) -> Iterator[subprocess.Popen[str]]:
    threads, waiting = way
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | waiting
    command = [sys.executable, "-m", "benchmarks.busy", "--worker", str(threads), "--model", str(model)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit("a worker ended before it was ready; it says why above")
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def busy(cores: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def view_ms(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def measure(model: Path, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(worker(model, way)) for name, way in ways().items()}
        for loops in sorted({0, 1, len(os.sched_getaffinity(0))}):
            taken: dict[str, list[float]] = {name: [] for name in workers}
            with busy(loops):
                for _ in range(rounds):
                    for name, process in workers.items():
                        taken[name].append(view_ms(process))
            one = statistics.median(taken["one thread"])
            print(loops, {name: round(statistics.median(times), 1) for name, times in taken.items()}, file=sys.stderr)
            found[f"{loops} busy loops"] = {
                name: {
                    "median ms": round(statistics.median(times), 1),
                    "fastest ms": round(min(times), 1),
                    "slowest tenth ms": round(sorted(times)[-max(1, rounds // 10)], 1),
                    "of one thread's median": round(statistics.median(times) / one, 2),
                }
                for name, times in taken.items()
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "busy.json")
    parser.add_argument("--rounds", type=int, help="of both towers")
    parser.add_argument("--tower", default="", help="only those with this in their name")
    parser.add_argument("--model", type=Path, default=NANO, help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        return work(chosen.model, chosen.worker)
    with tempfile.TemporaryDirectory() as folder:
        models = {"nano": NANO, "width 768, 12 layers": wide(Path(folder))}
        load = os.getloadavg()[0]
        found = {
            "command": "python -m benchmarks.busy",
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
            "others that wanted a core before it began": round(load, 1),
            "a view of 336 px": {
                name: measure(path, chosen.rounds or ROUNDS[name])
                for name, path in models.items()
                if chosen.tower in name
            },
        }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    json_text.write(chosen.out, found)
    print(json_text.dumps(found, indent=1))


if __name__ == "__main__":
    main()
