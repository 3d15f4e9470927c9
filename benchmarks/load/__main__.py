"""Many devices at once against one server: throughput, times to the first token, refusals, CPU, memory.

    python -m benchmarks.load --clients 1 4 16 64 --tokens 64       # minutes; writes benchmarks/results/load.json
    python -m benchmarks.load --engine vllm-remote --engine-url URL # the same before a vLLM server
    python -m benchmarks.load --soak 30                             # half an hour of mixed load
    python -m benchmarks.load --idle-sessions 1000                  # memory of sessions that do nothing

Starts a real server as a process and asks it over real sessions of this one, first for answers of a fixed length and
then for the model's own. `speedup_16` is tokens a second of 16 clients over those of one, `first_token_p95_ratio_16`
the ratio of the slowest twentieth's times to the first token. A part that is measured replaces its earlier result in
the file. Promises exit code 1 if a requirement was not met ("faults").
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.load import clients, figure
from benchmarks.load.idle import idle
from benchmarks.load.server import ROOT, serving
from benchmarks.load.soak import soak
from tofc import json_text
from tofc.model.shipped import NANO

RESULT = ROOT / "benchmarks" / "results" / "load.json"
LEAST, LEAST_SHORT = 20, 100  # questions of a row, of a row of short answers
IDLE_S = 10.0
SMALL_CACHES = ("--engine-cache-mib", "48", "--cache-mib", "8")  # full within a minute: then memory must be flat


async def compare(options: list[str], chosen: argparse.Namespace, *, tokens: int) -> dict[str, Any]:
    """Measure a row for each number of clients; `tokens` 0: the model's own answers."""
    material = await clients.Material.prepare(chosen.model)
    rows = []
    with serving(options, endless=tokens > 0) as served:
        for count in chosen.clients:
            each = max(chosen.questions, -(-(LEAST if tokens else LEAST_SHORT) // count))
            rows.append(
                await clients.measure(
                    served,
                    material,
                    clients=count,
                    tokens=tokens,
                    each=each,
                    at_once=chosen.at_once,
                    seed=chosen.seed,
                )
            )
            print(json_text.dumps(rows[-1]), file=sys.stderr)
    return {"rows": rows, **ratios(rows)}


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return what 16 clients get, relative to one alone; nothing if these were not measured."""
    by_count = {row["clients"]: row for row in rows}
    if not {1, 16} <= by_count.keys():
        return {}
    alone, company = by_count[1], by_count[16]
    return {
        "speedup_16": round(company["tokens_s"] / alone["tokens_s"], 2),
        "questions_speedup_16": round(company["questions_s"] / alone["questions_s"], 2),
        "first_token_p95_ratio_16": round(company["first_token_p95_ms"] / alone["first_token_p95_ms"], 1),
    }


async def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the parts that were chosen, by name."""
    sessions = max(*chosen.clients, chosen.idle_sessions, 8) + 8
    options = ["--model", str(chosen.model), "--sessions", str(sessions), *chosen.serve.split()]
    if chosen.engine != "embedded":
        options += ["--engine", chosen.engine, *(["--engine-url", chosen.engine_url] if chosen.engine_url else [])]
    found: dict[str, Any] = {}
    if chosen.soak or chosen.idle_sessions:
        material = await clients.Material.prepare(chosen.model)
        with serving([*options, *(SMALL_CACHES if chosen.soak else ())]) as served:
            if chosen.idle_sessions:
                encoder = material.encoder
                found["idle"] = await idle(
                    served,
                    chosen.idle_sessions,
                    model_id=encoder.model_id,
                    codec_id=encoder.codec_id,
                    seconds=IDLE_S,
                )
            if chosen.soak:
                found["soak"] = await soak(
                    served, material, clients=max(chosen.clients), minutes=chosen.soak, seed=chosen.seed
                )
        return found
    found[f"{chosen.engine}, {chosen.tokens} tokens"] = await compare(options, chosen, tokens=chosen.tokens)
    found[f"{chosen.engine}, own answers"] = await compare(options, chosen, tokens=0)
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=NANO)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--tokens", type=int, default=64, help="of every answer of the first table")
    parser.add_argument("--questions", type=int, default=2, help="of each client")
    parser.add_argument("--at-once", type=int, default=1, help="questions that each client has in flight")
    parser.add_argument("--engine", choices=["embedded", "vllm-remote"], default="embedded")
    parser.add_argument("--engine-url", default="", help="of --engine vllm-remote")
    parser.add_argument("--serve", default="", help="more options of `edge-server serve`, in one word")
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES", help="a mixed load instead")
    parser.add_argument("--idle-sessions", type=int, default=0, metavar="N", help="sessions that do nothing instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="", help="added to the names of the parts, for instance a version")
    parser.add_argument("--json", type=Path, default=RESULT, metavar="OUT", help="file of the results")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draw all tables of the file")
    chosen = parser.parse_args()
    arguments = " ".join(argument for argument in sys.argv[1:] if "/" not in argument)
    about = {
        "command": f"python -m benchmarks.load {arguments}".strip(),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, loopback",
    }
    found = asyncio.run(measure(chosen))
    parts = json.loads(chosen.json.read_text(encoding="utf-8")) if chosen.json.exists() else {}
    for name, part in found.items():
        parts[f"{name}{chosen.name and f', {chosen.name}'}"] = {**about, **part}
    json_text.write(chosen.json, parts)
    print(json_text.dumps(found, indent=1))
    if chosen.figure:
        figure.draw({name: part for name, part in parts.items() if "rows" in part}, chosen.figure)
    if any(part.get("faults") for part in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
