"""The first token of a question about a picture of nine views, read as its views arrive or only when all are there.

    python -m benchmarks.read_ahead        # about a minute; writes benchmarks/results/read_ahead.json

Two real servers as processes, which differ in nothing else, and one real device behind a link of limited rate. New
pictures are asked about in turn, a round of each server after another. Promises medians and their ratio; with `--model`
a larger model shows more, as nano reads the whole prompt in milliseconds (docs/latency.md has the arithmetic).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import sys
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from benchmarks.load.server import ROOT, Served, serving
from benchmarks.relay import Relay
from device_client.encoder import TowerEncoder
from device_client.link import Target
from device_client.report import Report
from device_client.session import Session
from tofc import json_text
from tofc.model.shipped import NANO

SIZE_PX = (896, 448)  # nano: 2 × 4 crops and the global view
VIEWS = 9
RATES = (50_000, 1_000)  # bytes a second in each direction
MODES = {"as views arrive": True, "when all are there": False}
QUESTION = "what is in the picture?"


async def ask(served: Served, encoder: TowerEncoder, pictures: list[Path], rate: int) -> list[Report]:
    """Ask about pictures that the server does not have, over one session behind a link of this rate."""
    port = int(served.address.rpartition(":")[2])
    async with (
        Relay(port, rate=rate, delay_s=0.01) as relay,
        Session(Target(address=f"127.0.0.1:{relay.port}"), encoder) as session,
    ):
        await session.ask([], "ready?").result()
        return [await session.ask([session.open(path)], QUESTION).result() for path in pictures]


async def measure(model: Path, rounds: int, rates: tuple[int, ...], seed: int) -> dict[str, Any]:
    """Return medians for each rate and server."""
    random, encoder, found = Random(seed), TowerEncoder.open(model), dict[str, Any]()
    encoder.load()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        options = ["--model", str(model)]
        servers = {name: stack.enter_context(serving(options, ahead=ahead)) for name, ahead in MODES.items()}
        for rate in rates:
            seen: dict[str, list[Report]] = {name: [] for name in servers}
            for number in range(rounds + 1):  # the first round warms up
                for name, served in list(servers.items())[:: 1 if number % 2 else -1]:  # neither is always first
                    file = folder / f"{rate} {number} {name}.png"
                    Image.frombytes("RGB", (16, 8), random.randbytes(384)).resize(SIZE_PX).save(file)
                    reports = await ask(served, encoder, [file], rate)
                    seen[name] += reports if number else []
            found[f"{rate} bytes/s"] = compare(seen)
            print(json_text.dumps(found[f"{rate} bytes/s"]), file=sys.stderr)
    return found


def compare(seen: dict[str, list[Report]]) -> dict[str, Any]:
    """Return medians in ms of each way, and the ratios of the first to the second."""
    medians: dict[str, dict[str, float]] = {}
    for name, reports in seen.items():
        assert all(report.views == report.views_sent == VIEWS for report in reports)
        waited = [one.timings["server_first_token"] - one.timings["server_wait"] for one in reports]
        medians[name] = {
            "first token after the last view": statistics.median(waited),
            "prefill after the last view": statistics.median(one.timings["server_prefill"] for one in reports),
            "first token on the device": statistics.median(one.timings["first_token"] for one in reports),
        }
    first, second = medians.values()
    return {
        **{name: {key: round(ms, 1) for key, ms in found.items()} for name, found in medians.items()},
        "ratios": {name: round(first[name] / second[name], 3) for name in first},
        "prompt tokens": next(iter(seen.values()))[0].usage["prompt_tokens"],
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=NANO)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rates", type=int, nargs="+", default=RATES, help="bytes a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "read_ahead.json")
    chosen = parser.parse_args()
    found = {
        "command": "python -m benchmarks.read_ahead",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, a relay on loopback",
        "load average": round(os.getloadavg()[0], 1),
        **asyncio.run(measure(chosen.model, chosen.rounds, tuple(chosen.rates), chosen.seed)),
    }
    json_text.write(chosen.out, found)
    print(json_text.dumps(found, indent=1))


if __name__ == "__main__":
    main()
