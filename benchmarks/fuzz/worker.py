"""One fuzzing process: `python -m benchmarks.fuzz.worker TARGET FOLDER WORK CASES SEED`; `benchmarks.fuzz` starts it.

Promises that an exception is recorded with its input and does not end the run, and that a huge allocation raises an
exception, because address space is limited. Leaves choosing cases by the code they reach, and ending a process that
hangs, to libFuzzer inside Atheris.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Protocol

MIB = 1 << 20
CASE_BYTES = 256 * MIB  # address space that a case may add to what the process has at its start
TIMEOUT_S = 20  # for one case
KEPT_INPUTS = 3  # of each finding

#: target → its module, its class, and the package whose coverage counts
TARGETS = {
    "packet": ("benchmarks.fuzz.packets", "Packets", "tofc.codec"),
    "stream": ("benchmarks.fuzz.streams", "Streams", "edge_server"),
}


class Target(Protocol):
    """A fuzzing target: code under test, with a way to make cases for it."""

    name: str
    longest: int  # bytes of a case

    def seeds(self) -> Iterator[bytes]: ...
    def run(self, data: bytes) -> str:
        """Run one case and return its outcome. An exception is a finding."""

    def mutate(self, data: bytes, rng: Random, blind: Callable[[bytes], bytes]) -> bytes: ...


def target(name: str) -> Target:
    """Make a target by its name; imports what it fuzzes."""
    module, kind, _ = TARGETS[name]
    made: Target = getattr(importlib.import_module(module), kind)()
    return made


class Runner:
    """Runs cases of a target: keeps counts in `state.json` of its folder `work`, findings in the shared `folder`."""

    def __init__(self, fuzzed: Target, folder: Path, work: Path, cases: int) -> None:
        self._target = fuzzed
        self._folder = folder
        self._work = work
        self._cases = cases
        self._done = 0
        self._began = time.process_time()
        self._outcomes: Counter[str] = Counter()
        self._findings: Counter[str] = Counter()
        self._slowest_ms = 0.0

    def one(self, data: bytes) -> None:
        began = time.process_time()
        try:
            self._outcomes[self._target.run(data)] += 1
        except Exception as error:
            self._record(data, error)
        took = (time.process_time() - began) * 1e3
        if took > 2 * self._slowest_ms:
            (self._folder / f"slowest-{self._target.name}").write_bytes(data)
        self._slowest_ms = max(took, self._slowest_ms)
        self._done += 1
        if self._done % 1000 == 0 or self._done == self._cases:
            self.save()

    def save(self) -> None:
        state: dict[str, Any] = {
            "cases": self._done,
            "cpu_seconds": time.process_time() - self._began,
            "outcomes": dict(self._outcomes),
            "findings": dict(self._findings),
            "slowest_ms": self._slowest_ms,
        }
        temporary = self._work / "state.new"
        temporary.write_text(json.dumps(state), encoding="utf-8")
        temporary.rename(self._work / "state.json")  # complete at any moment

    def _record(self, data: bytes, error: Exception) -> None:
        place = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        self._findings[kind] += 1
        if self._findings[kind] <= KEPT_INPUTS:
            name = f"{self._target.name}-{hashlib.sha256(data).hexdigest()[:16]}"
            findings = self._folder / "findings"
            (findings / name).write_bytes(data)
            (findings / f"{name}.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")


def main(name: str, folder: Path, work: Path, cases: int, seed: int) -> None:
    import atheris

    package = TARGETS[name][2]
    with atheris.instrument_imports(include=[package], enable_loader_override=False):  # nothing imported it before
        fuzzed = target(name)
    corpus = folder / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    (folder / "findings").mkdir(exist_ok=True)
    for data in fuzzed.seeds():
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)
    runner = Runner(fuzzed, folder, work, cases)
    longest = fuzzed.longest

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        blind = lambda some: bytes(atheris.Mutate(some, longest)) if some else b"\0"  # noqa: E731
        return fuzzed.mutate(data, Random(seed), blind)[:max_size]

    flags = {
        "runs": cases, "seed": seed, "max_len": longest, "len_control": 0, "mutate_depth": 1, "timeout": TIMEOUT_S,
        "artifact_prefix": f"{folder}/findings/{name}-", "rss_limit_mb": 0, "print_final_stats": 1,
    }  # fmt: skip
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + CASE_BYTES, resource.RLIM_INFINITY))
    arguments = [sys.argv[0], *(f"-{flag}={value}" for flag, value in flags.items()), str(corpus)]
    atheris.Setup(arguments, runner.one, custom_mutator=mutate)
    atheris.Fuzz()  # ends the process


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
