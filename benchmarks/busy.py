"""How long the vision tower takes beside other programs, by the number of its threads and how they wait.

    python -m benchmarks.busy        # about five minutes on an idle machine; writes benchmarks/results/busy.json

Each setting has a process that has loaded the tower. The processes take turns, one view each, while endless loops keep
none, one or all of the cores busy. It measures two towers: nano's, and a random one of width 768 and 12 layers.
Promises medians and the slowest tenth, relative to one thread in the same rounds, so that the machine's noise affects
all settings alike. Leaves the conclusion to `tofc.model.torch_threads`.
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

from tofc import json_text
from tofc.model.config import SplitConfig
from tofc.model.released_names import vision_shapes
from tofc.model.shipped import NANO
from tofc.model.torch_threads import PASSIVE

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = {"nano": 15, "width 768, 12 layers": 5}
WIDE = {"width": 768, "layers": 12, "heads": 12}
SIDE = 336
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

Setting = tuple[int, dict[str, str]]  # number of threads, environment variables that set how they wait


def settings() -> dict[str, Setting]:
    """Return the settings to compare, by name."""
    cores = len(os.sched_getaffinity(0))
    return {
        "one thread": (1, {}),
        "a thread a core, waiting in loops": (cores, {}),
        "a thread a core, waiting in 1 000 loops, then asleep": (cores, {"GOMP_SPINCOUNT": "1000"}),
        "a thread a core, waiting asleep: the default": (cores, dict([PASSIVE])),
    }


def write_wide_tower(folder: Path) -> Path:
    """Write a checkpoint of a tower with random weights; return its folder."""
    import torch
    from safetensors.torch import save_file

    from tofc_lab.checkpoint import fake

    raw = fake.config(fake.tokenizer())
    raw["vision_config"] |= WIDE
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    torch.manual_seed(0)
    shapes = vision_shapes(SplitConfig.parse(raw))
    drawn = {name: torch.randn(shape) * prod(shape[1:]) ** -0.5 * 0.1 for name, shape in shapes.items()}
    save_file(drawn, folder / "model.safetensors")
    return folder


def encode_views(model: Path, threads: int) -> None:
    """Encode a view for each line on stdin and print its milliseconds: what a worker process does."""
    import time

    import numpy as np
    import torch

    from tofc.model.checkpoint import Checkpoint
    from tofc.model.tower import Tower

    torch.set_num_threads(threads)
    tower = Tower(Checkpoint.open(model, "device"), torch.float32)
    pixels = np.zeros((1, 3, SIDE, SIDE), np.float32)
    for _ in range(2):
        tower.encode(pixels)
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        tower.encode(pixels)
        print((time.perf_counter() - started) * 1e3, flush=True)


@contextmanager
def worker(model: Path, setting: Setting) -> Iterator[subprocess.Popen[str]]:
    """Run a worker process with one setting."""
    threads, waiting = setting
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | waiting
    command = [sys.executable, "-m", "benchmarks.busy", "--worker", str(threads), "--model", str(model)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit("a worker ended before it was ready; its output above says why")
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def busy(cores: int) -> Iterator[None]:
    """Keep this many cores busy with endless loops, which all run when this is entered."""
    command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    with ExitStack() as stack:
        loops = [stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE)) for _ in range(cores)]
        for loop in loops:
            stack.callback(loop.kill)
        for loop in loops:
            assert loop.stdout is not None
            loop.stdout.readline()
        yield


def view_ms(process: subprocess.Popen[str]) -> float:
    """Let a worker encode one view; return its milliseconds."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def measure(model: Path, rounds: int) -> dict[str, Any]:
    """Measure one tower in all settings, with none, one and all cores busy."""
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(worker(model, setting)) for name, setting in settings().items()}
        for loops in sorted({0, 1, len(os.sched_getaffinity(0))}):
            taken: dict[str, list[float]] = {name: [] for name in workers}
            with busy(loops):
                for _ in range(rounds):
                    for name, process in workers.items():
                        taken[name].append(view_ms(process))
            one_thread = statistics.median(taken["one thread"])
            print(loops, {name: round(statistics.median(times), 1) for name, times in taken.items()}, file=sys.stderr)
            found[f"{loops} busy loops"] = {
                name: {
                    "median ms": round(statistics.median(times), 1),
                    "fastest ms": round(min(times), 1),
                    "slowest tenth ms": round(sorted(times)[-max(1, rounds // 10)], 1),
                    "of one thread's median": round(statistics.median(times) / one_thread, 2),
                }
                for name, times in taken.items()
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "busy.json")
    parser.add_argument("--rounds", type=int, help="rounds for both towers")
    parser.add_argument("--tower", default="", help="only towers with this in their name")
    parser.add_argument("--model", type=Path, default=NANO, help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        return encode_views(chosen.model, chosen.worker)
    with tempfile.TemporaryDirectory() as folder:
        models = {"nano": NANO, "width 768, 12 layers": write_wide_tower(Path(folder))}
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
