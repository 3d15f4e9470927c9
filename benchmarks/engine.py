"""What the embedded engine answers with one to many clients, packed and in turns, without network or text.

    python -m benchmarks.engine        # about two minutes on an idle machine; writes benchmarks/results/engine.json

Clients ask one question after another with made-up prompts of nano's size; no token ends an answer, so that all have
the same length. Engines and numbers of clients take turns, and ratios are those of medians over the rounds, so that the
machine's noise affects all alike; rates are by CPU time of the process as well as by the clock. Leaves the way over the
network to `benchmarks.end_to_end`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import platform
import time
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from edge_server.engine.base import Generation, Prompt
from edge_server.engine.probe import is_exact
from edge_server.engine.qwen3 import load_qwen3
from edge_server.engine.sampling import SamplingParams
from edge_server.engine.transformers import TransformersEngine
from tofc import json_text
from tofc.model.checkpoint import Checkpoint
from tofc.model.shipped import NANO

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = (1, 16)
PROMPT_ROWS = 53  # the median of the questions in tests/e2e/pictures
ANSWERS = {"64 tokens": 64, "2 tokens": 2}  # the second: nano's own
SAMPLES = 16
SAMPLE_TOKENS = 64
QUESTIONS = 16  # of all clients together, at least two each; of short answers four times as many
CONVERSATIONS = itertools.count()
CONVERSATION_ROWS = (700, 740)  # of a prompt, and of the next turn's


class Bench:
    """One engine under load."""

    def __init__(self, engine: TransformersEngine, hidden: int, scale: float) -> None:
        self._engine = engine
        self._shape = hidden, scale
        self._random = np.random.default_rng(0)

    def rows(self, count: int) -> Any:
        """Make the rows [count, H] of a prompt."""
        hidden, scale = self._shape
        return self._random.standard_normal((count, hidden)).astype(np.float32) * scale

    async def load(self, clients: int, tokens: int) -> dict[str, float]:
        """Let clients ask, each one question at a time, and return rates and times to the first token."""
        each = max(2, round(QUESTIONS / clients)) * (1 if tokens > 2 else 4)
        first_ms: list[float] = []

        async def ask(client: int) -> None:
            for number in range(each):
                prompt = Prompt(embeds=self.rows(PROMPT_ROWS), client=f"{client} {number}")
                started = time.perf_counter()
                generation = self._engine.submit(prompt, SamplingParams(max_tokens=tokens))
                await anext(generation)
                first_ms.append((time.perf_counter() - started) * 1e3)
                await _drain(generation)

        wall, cpu = await _timed(asyncio.gather(*map(ask, range(clients))))
        done = clients * each * tokens
        return {
            "tokens a second": done / wall,
            "tokens a CPU second": done / cpu,
            "first token ms, p95": float(np.percentile(first_ms, 95)),
        }

    async def samples(self, count: int) -> float:
        """Return the CPU milliseconds of some samples of one prompt."""
        prompt = Prompt(embeds=self.rows(PROMPT_ROWS))
        sampling = SamplingParams(max_tokens=SAMPLE_TOKENS, temperature=1.0)
        generations = self._engine.submit_samples(prompt, sampling, count)
        return (await _timed(asyncio.gather(*map(_drain, generations))))[1] * 1e3

    async def conversation(self) -> list[float]:
        """Return the CPU milliseconds to the first token of a long prompt, and of the next turn."""
        first, second = CONVERSATION_ROWS
        rows, found = self.rows(second), []
        client = f"conversation {next(CONVERSATIONS)}"  # else its rows are kept from an earlier round
        for count in (first, second):
            prompt = Prompt(embeds=rows[:count], client=client)
            generation = self._engine.submit(prompt, SamplingParams(max_tokens=1))
            found.append((await _timed(_drain(generation)))[1] * 1e3)
        return found


async def _drain(generation: Generation) -> None:
    async for _ in generation:
        pass


async def _timed(work: Any) -> tuple[float, float]:
    """Return the seconds and the process's CPU seconds that something takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    await work
    return time.perf_counter() - wall, time.process_time() - cpu


async def measure(rounds: int, clients: tuple[int, ...] = CLIENTS) -> dict[str, Any]:
    """Measure both ways of computing, in turns."""
    model = load_qwen3(Checkpoint.open(NANO, "server"))
    embedding: Any = model.get_input_embeddings()
    size = (model.config.hidden_size, float(embedding.weight.detach().std()))
    exact = is_exact(model)
    engines = {name: TransformersEngine(model, [], packed=name == "packed") for name in ("packed", "in turns")}
    taken: dict[str, list[float]] = defaultdict(list)
    try:
        for engine in engines.values():  # to warm up
            await Bench(engine, *size).load(clients[-1], 1)
        for _ in range(rounds):
            for name, engine in engines.items():
                bench = Bench(engine, *size)
                for answer, tokens in ANSWERS.items():
                    for count in clients:
                        for what, value in (await bench.load(count, tokens)).items():
                            taken[f"{name}: {answer}, {count} clients, {what}"].append(value)
                for count in (1, SAMPLES):
                    taken[f"{name}: {count} samples, CPU ms"].append(await bench.samples(count))
                for rows, value in zip(CONVERSATION_ROWS, await bench.conversation(), strict=True):
                    taken[f"{name}: conversation of {rows} rows, CPU ms"].append(value)
    finally:
        for engine in engines.values():
            await engine.stop()
    medians = {name: float(np.median(values)) for name, values in taken.items()}
    return {
        "a packed forward is exact here": exact,
        "ratios": _ratios(medians, clients[0], 16 if 16 in clients else clients[-1]),
        "medians": {name: round(value, 2) for name, value in medians.items()},
    }


def _ratios(medians: dict[str, float], one: int, many: int) -> dict[str, float]:
    found = {}
    for name in ("packed", "in turns"):
        for answer in ANSWERS:
            for what in ("tokens a second", "tokens a CPU second", "first token ms, p95"):
                keys = [f"{name}: {answer}, {count} clients, {what}" for count in (many, one)]
                found[f"{name}: {answer}, {many} clients to {one}, {what}"] = medians[keys[0]] / medians[keys[1]]
        found[f"{name}: {SAMPLES} samples to 1"] = (
            medians[f"{name}: {SAMPLES} samples, CPU ms"] / medians[f"{name}: 1 samples, CPU ms"]
        )
        turns = [medians[f"{name}: conversation of {rows} rows, CPU ms"] for rows in CONVERSATION_ROWS]
        found[f"{name}: next turn to the first"] = turns[1] / turns[0]
    for answer in ANSWERS:
        rate = f"{answer}, {{}} clients, tokens a CPU second"
        alone = medians["in turns: " + rate.format(one)]
        for count in (one, many):
            found[f"packed with {count} clients to in turns with {one}: {answer}, tokens a CPU second"] = (
                medians["packed: " + rate.format(count)] / alone
            )
    return {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "engine.json")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    found = {
        "command": "python -m benchmarks.engine",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "others that wanted a core before it began": round(os.getloadavg()[0], 1),
        **asyncio.run(measure(chosen.rounds)),
    }
    json_text.write(chosen.out, found)
    print(json_text.dumps(found["ratios"], indent=1))


if __name__ == "__main__":
    main()
