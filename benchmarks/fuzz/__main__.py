"""Fuzzes packets and sessions until a number of cases have been run.

    python -m benchmarks.fuzz --cases 10000000          # hours; resumes where it stopped
    python -m benchmarks.fuzz --replay FILE             # run one finding again, with its traceback

Nine of ten cases are packets, one is a pair of sessions. They run in slices. The corpus, the findings and the counts
are kept in `runs/fuzz`, and benchmarks/results/fuzz.json is written after every slice; another folder starts a new
campaign. Promises that a hang or a dead process ends no more than its slice. Leaves running the cases to `worker`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import date
from importlib import metadata, util
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.fuzz.worker import TARGETS, target
from tofc import json_text
from tofc.install import install

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "fuzz.json"
SHARES = {"packet": 0.9, "stream": 0.1}
SLICE = 50_000  # cases of all targets for each job
INTERRUPTED = (72, 130, -signal.SIGINT, -signal.SIGTERM)  # exit codes of libFuzzer, Atheris, Python
PROGRESS = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")  # in libFuzzer's log


def empty_counts() -> dict[str, Any]:
    """Return the counts of a new target. `seconds` are wall-clock time; `slowest_ms` is processor time."""
    zeros: dict[str, Any] = dict.fromkeys(("cases", "seconds", "cpu_seconds", "edges", "features", "corpus"), 0)
    return zeros | {"slowest_ms": 0.0, "outcomes": {}}


class Campaign:
    """The fuzzing in one folder, slice by slice."""

    def __init__(self, folder: Path, seed: int, jobs: int) -> None:
        self.folder = folder
        self.jobs = jobs
        self.broken = ""  # why it cannot continue, if it cannot
        self._file = folder / "campaign.json"
        fresh = {"seed": seed, "slices": 0, "findings": {}, "targets": {name: empty_counts() for name in TARGETS}}
        self.state: dict[str, Any] = json.loads(self._file.read_bytes()) if self._file.exists() else fresh

    @property
    def cases(self) -> int:
        return sum(one["cases"] for one in self.state["targets"].values())

    @property
    def speed(self) -> float:
        """Cases per processor second."""
        return self.cases / max(sum(one["cpu_seconds"] for one in self.state["targets"].values()), 1e-9)

    @property
    def findings(self) -> int:
        return sum(self.state["findings"].values())

    def slice(self, name: str, cases: int) -> None:
        """Run this many cases of one target, divided among the jobs; add up the results."""
        each = -(-cases // self.jobs)
        running = []
        self.folder.mkdir(parents=True, exist_ok=True)
        # A new folder: a process left over from an earlier campaign must not write into this one's figures.
        with TemporaryDirectory(dir=self.folder, prefix="slice-") as slice_folder:
            for job in range(self.jobs):
                self.state["slices"] += 1  # each job has its own seed; 0 would be random
                work = Path(slice_folder, f"job-{job}")
                work.mkdir()
                seed = self.state["seed"] * 1_000_003 + self.state["slices"]
                command = [sys.executable, "-m", "benchmarks.fuzz.worker", name, self.folder, work, each, seed]
                with (work / "log").open("w", encoding="utf-8") as log:
                    running.append((work, subprocess.Popen([str(word) for word in command], cwd=ROOT, stderr=log)))
            began = time.perf_counter()
            try:
                for _, process in running:
                    process.wait()
            except KeyboardInterrupt:
                for _, process in running:
                    process.terminate()
                    process.wait()
                raise
            finally:
                self.state["targets"][name]["seconds"] += time.perf_counter() - began
                for work, process in running:
                    self._add(name, work, process.returncode)
                self._file.write_text(json.dumps(self.state), encoding="utf-8")

    def _add(self, name: str, work: Path, code: int | None) -> None:
        total, log = self.state["targets"][name], (work / "log").read_text(encoding="utf-8", errors="replace")
        found, state = PROGRESS.findall(log), work / "state.json"
        done = json.loads(state.read_bytes()) if state.exists() else empty_counts() | {"findings": {}}
        for key in ("cases", "cpu_seconds"):
            total[key] += done[key]
        total["slowest_ms"] = max(total["slowest_ms"], done["slowest_ms"])
        total["outcomes"] = dict(Counter(total["outcomes"]) + Counter(done["outcomes"]))
        for key, value in zip(("edges", "features", "corpus"), map(int, found[-1] if found else ()), strict=False):
            total[key] = max(total[key], value) if key != "corpus" else value
        if code not in (0, *INTERRUPTED):
            done["findings"][f"the {name} process ended with {code}"] = 1
            print(log[-2000:], file=sys.stderr)
            if not done["cases"]:
                self.broken = f"a {name} process ended with {code} before its first thousand cases"
        self.state["findings"] = dict(Counter(self.state["findings"]) + Counter(done["findings"]))

    def result(self) -> dict[str, Any]:
        machine = f"{platform.machine()}, {os.cpu_count()} processors"
        return {
            "cases": self.cases,
            "cases_a_cpu_second": round(self.speed),
            "findings": self.state["findings"],
            "seed": self.state["seed"],
            "jobs": self.jobs,
            "date": date.today().isoformat(),
            "machine": machine,
            "python": platform.python_version(),
            "atheris": metadata.version("atheris"),
            "targets": self.state["targets"],
        }

    def __str__(self) -> str:
        parts = [f"{self.cases:,} cases", f"{self.speed:,.0f} per processor second"]
        for name, counts in self.state["targets"].items():
            parts.append(f"{name}: {counts['edges']} edges, slowest {counts['slowest_ms']:.0f} ms")
        return " | ".join([*parts, f"{self.findings} findings"])


def replay(file: Path) -> None:
    """Run one case; its exception is not caught."""
    name = file.name.split("-")[0]
    if name not in TARGETS:
        raise SystemExit(f"{file.name} is not a finding: names of findings begin with {' or '.join(TARGETS)}")
    print(target(name).run(file.read_bytes()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=100_000, help="in total, including earlier runs in the folder")
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "runs" / "fuzz",
        help="corpus, findings and counts to resume from; %(default)s",
    )
    parser.add_argument("--out", type=Path, default=RESULT, help="%(default)s")
    parser.add_argument("--seed", type=int, default=1, help="seed of a new folder")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once; they share the corpus")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one finding again and nothing else")
    chosen = parser.parse_args()
    if chosen.replay:
        return replay(chosen.replay)
    if util.find_spec("atheris") is None:
        raise SystemExit(f"atheris is not installed; on Linux x86-64 with Python below 3.14: {install('dev')}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    campaign = Campaign(chosen.folder.resolve(), chosen.seed, max(chosen.jobs, 1))
    try:
        while (left := chosen.cases - campaign.cases) > 0:
            part = min(left, SLICE * campaign.jobs)
            for name, share in SHARES.items():
                campaign.slice(name, max(round(part * share), 1))
                if campaign.broken:
                    raise SystemExit(campaign.broken)
            json_text.write(chosen.out, campaign.result())
            print(campaign, flush=True)
    except KeyboardInterrupt:
        print(f"stopped; the same command resumes here: {campaign}")
        raise SystemExit(130) from None
    if campaign.findings:
        raise SystemExit(f"findings, with inputs in {campaign.folder}/findings: {campaign.state['findings']}")


if __name__ == "__main__":
    main()
