"""Devices → edge servers → engines, by simpy: how long a first token takes, and what is busy.

    device ─ think ─ link ─ edge: threads (decode, write prompt) ─ engine: places, steps ─ edge: event loop ─→ answer
       ↑                                                                                                        │
       └────────────────────────────────────────────────────────────────────────────────────────────────────────┘

A step of an engine takes the same time for all of its answers and gives each a token; prompts that were admitted are
read in it. A device keeps its edge server and its engine, as consistent hashing does. Promises the same result for the
same seed. Leaves out: lost links, caches that hold a prompt's rows, queues that refuse (a device waits instead), and
that Python's threads share one lock. The event loop's work for an answer is done in one piece at its end.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import simpy

from benchmarks.scaling.arithmetic import EDGE_THREADS
from benchmarks.scaling.pieces import Pieces

STEP_ROWS = 8192  # the most rows of prompts that are read in a step (vLLM's --max-num-batched-tokens here)
LIMIT_S = 2.0  # a cluster is saturated if the 95th percentile of first tokens is later


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """How many of each."""

    edges: int
    engines: int


@dataclass(kw_only=True)
class Outcome:
    """What a simulated time showed: seconds to first tokens, and the share of time that resources were busy."""

    devices: int
    first_token_s: list[float] = field(default_factory=list)
    busy: dict[str, float] = field(default_factory=dict)
    tokens_a_s: float = 0.0

    def percentile(self, share: float) -> float:
        """Return a percentile of the times to the first token; 0 if none came."""
        ordered = sorted(self.first_token_s)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0

    @property
    def saturated(self) -> bool:
        """Whether first tokens come later than LIMIT_S."""
        return not self.first_token_s or self.percentile(0.95) > LIMIT_S

    @property
    def busiest(self) -> str:
        """The resource that is busy most."""
        return max(self.busy, key=self.busy.__getitem__)


class Engine:
    """Computes up to `engine_places` answers at once, a token each in every step."""

    def __init__(self, env: simpy.Environment, pieces: Pieces) -> None:
        self._env, self._pieces = env, pieces
        self._waiting: deque[tuple[simpy.Event, simpy.Event, int]] = deque()
        self._ends: list[tuple[int, int, simpy.Event]] = []  # a heap: the step that ends an answer
        self._numbers = count()
        self._wake = env.event()
        self.tokens = 0
        self.place_s = 0.0  # places times seconds that they were taken
        env.process(self._run())

    def submit(self, tokens: int) -> tuple[simpy.Event, simpy.Event]:
        """Queue a prompt; return the events of its first and its last token."""
        first, last = self._env.event(), self._env.event()
        self._waiting.append((first, last, tokens))
        if not self._wake.triggered:
            self._wake.succeed()
        return first, last

    def _run(self) -> Generator[simpy.Event, Any, None]:
        pieces, step = self._pieces, 0
        places = int(pieces.engine_places.value)
        prompts = max(1, int(STEP_ROWS / pieces.rows))
        while True:
            if not self._ends and not self._waiting:
                self._wake = self._env.event()
                yield self._wake
            admitted = []
            while self._waiting and len(self._ends) < places and len(admitted) < prompts:
                first, last, tokens = self._waiting.popleft()
                admitted.append(first)
                heapq.heappush(self._ends, (step + tokens, next(self._numbers), last))
            answers = len(self._ends)
            duration_s = (
                pieces.step_s.value
                + answers * pieces.step_token_s.value
                + len(admitted) * pieces.rows * pieces.prefill_row_s.value
            )
            yield self._env.timeout(duration_s)
            step += 1
            self.tokens += answers
            self.place_s += answers * duration_s
            for first in admitted:
                first.succeed()
            while self._ends and self._ends[0][0] <= step:
                heapq.heappop(self._ends)[2].succeed()


class Edge:
    """An edge server: threads that decode and write prompts, and one event loop."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._threads = simpy.Resource(env, EDGE_THREADS)
        self._loop = simpy.Resource(env, 1)
        self.thread_s = self.loop_s = 0.0

    def compute(self, seconds: float) -> Generator[simpy.Event, Any, None]:
        """Compute in one of the threads."""
        with self._threads.request() as turn:
            yield turn
            yield self._env.timeout(seconds)
            self.thread_s += seconds

    def stream(self, seconds: float) -> Generator[simpy.Event, Any, None]:
        """Work in the event loop."""
        with self._loop.request() as turn:
            yield turn
            yield self._env.timeout(seconds)
            self.loop_s += seconds


def simulate(
    pieces: Pieces, cluster: Cluster, devices: int, *, seed: int, warm_s: float = 60.0, measured_s: float = 120.0
) -> Outcome:
    """Run `devices` against a cluster for a simulated time; the first `warm_s` do not count."""
    env = simpy.Environment()
    edges = [Edge(env) for _ in range(cluster.edges)]
    engines = [Engine(env, pieces) for _ in range(cluster.engines)]
    outcome = Outcome(devices=devices)

    def device(number: int) -> Generator[simpy.Event, Any, None]:
        chance = random.Random(f"{seed} {number}")
        edge, engine = edges[number % len(edges)], engines[(number // len(edges)) % len(engines)]
        pause_s = pieces.question_every_s.value
        yield env.timeout(chance.expovariate(1 / pause_s))  # as if devices had always been asking
        for question in count(chance.randrange(int(pieces.questions_a_picture.value))):
            asked_s = env.now
            fresh = question % int(pieces.questions_a_picture.value) == 0
            sent = pieces.question_bytes.value + (pieces.picture_bytes.value if fresh else 0)
            yield env.timeout(pieces.round_trip_s.value / 2 + sent / pieces.link_bytes_a_s.value)
            yield from edge.compute((pieces.decode_s.value if fresh else 0) + pieces.assemble_s.value)
            tokens = max(1, round(chance.expovariate(1 / pieces.answer_tokens.value)))
            first, last = engine.submit(tokens)
            yield first
            if asked_s >= warm_s:
                outcome.first_token_s.append(env.now + pieces.round_trip_s.value / 2 - asked_s)
            yield last
            yield from edge.stream(pieces.question_cpu_s.value + tokens * pieces.token_cpu_s.value)
            yield env.timeout(chance.expovariate(1 / pause_s))

    for number in range(devices):
        env.process(device(number))
    env.run(warm_s)
    before = _spent(edges, engines)
    env.run(warm_s + measured_s)
    spent = [after - earlier for after, earlier in zip(_spent(edges, engines), before, strict=True)]
    outcome.busy = {
        "edge threads": spent[0] / (measured_s * len(edges) * EDGE_THREADS),
        "event loops": spent[1] / (measured_s * len(edges)),
        "engine places": spent[2] / (measured_s * len(engines) * pieces.engine_places.value),
    }
    outcome.tokens_a_s = spent[3] / measured_s
    return outcome


def _spent(edges: list[Edge], engines: list[Engine]) -> list[float]:
    return [
        sum(edge.thread_s for edge in edges),
        sum(edge.loop_s for edge in edges),
        sum(engine.place_s for engine in engines),
        float(sum(engine.tokens for engine in engines)),
    ]


def most_devices(
    pieces: Pieces, cluster: Cluster, *, seed: int, most: int = 65_536, tolerance: float = 0.05, **times: float
) -> Outcome:
    """Search for the most devices that a cluster serves without being saturated; return how that went."""
    low = simulate(pieces, cluster, 1, seed=seed, **times)
    devices = 64
    while devices <= most and not (found := simulate(pieces, cluster, devices, seed=seed, **times)).saturated:
        low, devices = found, devices * 2
    high = min(devices, most)
    while high - low.devices > max(1, tolerance * low.devices):
        found = simulate(pieces, cluster, (low.devices + high) // 2, seed=seed, **times)
        if found.saturated:
            high = found.devices
        else:
            low = found
    return low
