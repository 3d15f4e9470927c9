"""Attacks a server on this machine, cuts its links and kills it; well-behaved devices must hardly notice.

    python -m benchmarks.trust                      # nano, about six minutes; writes benchmarks/results/trust.json
    python -m benchmarks.trust --model fake --short # half a minute, with a server without a model
    python -m benchmarks.trust --only hpack_bombs   # measure one part again
    python -m benchmarks.trust --soak 3600          # an hour of questions; Ctrl-C ends it early

Every attack runs in its own process while a device asks questions, whose answers are timed and checked. Then a link
dies silently, the server is killed during a batch, and links are cut. A measured part replaces its earlier result in
the file. Promises exit code 1 if a requirement was not met ("faults"), and that everything stays on 127.0.0.1. Leaves
the parts to the other modules.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Awaitable, Callable
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.trust.attacks import ATTACKS
from benchmarks.trust.beside import Plan, attacked, unread_log
from benchmarks.trust.dead_link import dead_link
from benchmarks.trust.once import cuts, kills
from benchmarks.trust.soak import soak
from benchmarks.trust.subject import ROOT, Server, Subject, serving
from tofc import json_text
from tofc.model.shipped import NANO

RESULT = ROOT / "benchmarks" / "results" / "trust.json"
LONG = Plan(attack_s=10.0, alone=200, rest_s=10.0)
# `slower` is unlimited, because with few answers one or two that wait for a core would decide.
SHORT = Plan(attack_s=0.8, alone=5, rest_s=1.0, slower=math.inf)
KILLS, CUTS = (20, 2), (300, 10)  # long, short

Part = Callable[[Subject, Server], Awaitable[dict[str, Any]]]


def parts(plan: Plan, seed: int) -> dict[str, Part]:
    """Return everything that is measured, by name."""
    short = plan == SHORT

    def attack(name: str) -> Part:
        return lambda subject, server: attacked(subject, server, name, plan, seed)

    async def unread(subject: Subject, server: Server) -> dict[str, Any]:
        return await unread_log(subject, Server(subject.model, server.log), plan, seed)

    async def dead(subject: Subject, server: Server) -> dict[str, Any]:
        return await dead_link()

    found = {name: attack(name) for name in ATTACKS}
    found["unread_log"] = unread
    found["dead_link"] = dead
    if short:  # the first cannot be shortened; the second needs more time than `short` gives
        del found["dead_link"], found["hpack_bombs_of_many"]
    found["kills"] = lambda subject, server: kills(subject, server, KILLS[short], Random(seed))
    found["cuts"] = lambda subject, server: cuts(subject, server, CUTS[short], Random(seed))
    return found


async def run(model: Path, names: dict[str, Part], keep: Callable[[str, dict[str, Any]], None]) -> None:
    """Run the parts against one server; call `keep` with each result."""
    with tempfile.TemporaryDirectory() as folder:
        subject, log = Subject(model=model, folder=Path(folder)), Path(folder, "log")
        with serving(model, log) as server:
            await subject.learn(server.port)
            for name, part in names.items():
                print(name, end=" ", file=sys.stderr, flush=True)
                found = await part(subject, server)
                keep(name, {**found, "date": date.today().isoformat()})
                print("; ".join(found["faults"]) or "held", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trust", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=NANO, help="or: fake; %(default)s")
    parser.add_argument("--short", action="store_true", help="a second of each attack, few kills and cuts")
    parser.add_argument("--only", action="append", metavar="PART", help="only this part; may be repeated")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="only ask questions for this long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT, help="%(default)s")
    chosen = parser.parse_args()
    names = parts(SHORT if chosen.short else LONG, chosen.seed)
    if chosen.soak is not None:
        names = {"soak": lambda subject, server: soak(subject, server, chosen.soak)}
    elif chosen.only:
        if unknown := set(chosen.only) - set(names):
            parser.error(f"--only must be one of {', '.join(names)}, got {unknown.pop()}")
        names = {name: names[name] for name in chosen.only}
    head = {
        "command": "python -m benchmarks.trust",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, loopback",
        "model": chosen.model.name,
        "seed": chosen.seed,
    }
    before = json.loads(chosen.out.read_text(encoding="utf-8")) if chosen.out.exists() else {}
    same = all(before.get(key) == value for key, value in head.items())
    result: dict[str, Any] = {**head, "measured": before["measured"] if same else {}}

    def keep(name: str, found: dict[str, Any]) -> None:
        result["measured"][name] = found
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        json_text.write(chosen.out, result)

    try:
        asyncio.run(run(chosen.model, names, keep))
    except KeyboardInterrupt:
        sys.exit(130)
    measured = {name: result["measured"][name] for name in names}
    print(json.dumps(measured, indent=1))
    sys.exit(any(one["faults"] for one in measured.values()))


if __name__ == "__main__":
    main()
