"""How many devices some edge servers and engines serve, and what they need: arithmetic, then a simulation.

    python -m benchmarks.scaling [--quick] [--seed N] [--json OUT] [--picture docs/scaling.png]

Reads what was measured from benchmarks/results/. With --json a file for docs/scaling.md; --picture needs `make lab`.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.scaling.arithmetic import needs
from benchmarks.scaling.pieces import read
from benchmarks.scaling.simulation import LIMIT_S, Cluster, Outcome, most_devices, simulate

DEVICES = (100, 1_000, 10_000)
CLUSTERS = ((1, 1), (2, 1), (1, 2), (2, 2), (4, 4), (6, 6))
SWEPT = Cluster(edges=2, engines=2)
SWEEP = (500, 1_000, 2_000, 3_000, 4_000, 5_000, 5_500, 6_000, 7_000)
QUICK: dict[str, float] = {"warm_s": 20.0, "measured_s": 40.0}


def measure(*, seed: int, quick: bool = False) -> dict[str, Any]:
    """Return the pieces, the arithmetic, and what the simulation found."""
    pieces, times = read(), QUICK if quick else {}
    clusters = [Cluster(edges=edges, engines=engines) for edges, engines in (CLUSTERS[:2] if quick else CLUSTERS)]
    options = " --quick" if quick else ""
    return {
        "command": f"python -m benchmarks.scaling --seed {seed}{options}",
        "date": date.today().isoformat(),
        "seed": seed,
        "limit_s": LIMIT_S,
        "pieces": {
            name: {"value": piece.value, "unit": piece.unit, "what": piece.what, "source": piece.source}
            for name, piece in pieces
        },
        "needs": {str(devices): needs(pieces, devices) for devices in DEVICES},
        "clusters": [
            {"edges": one.edges, "engines": one.engines, **_row(most_devices(pieces, one, seed=seed, **times))}
            for one in clusters
        ],
        "sweep": {
            "edges": SWEPT.edges,
            "engines": SWEPT.engines,
            "rows": [
                _row(simulate(pieces, SWEPT, devices, seed=seed, **times)) for devices in SWEEP[: 2 if quick else None]
            ],
        },
    }


def _row(outcome: Outcome) -> dict[str, Any]:
    return {
        "devices": outcome.devices,
        "first_token_s": {f"p{percent}": round(outcome.percentile(percent / 100), 3) for percent in (50, 95)},
        "tokens_a_s": round(outcome.tokens_a_s),
        "busy": {name: round(share, 3) for name, share in outcome.busy.items()},
        "busiest": outcome.busiest,
    }


def tables(found: dict[str, Any]) -> str:
    """Return what was found as the tables of docs/scaling.md."""
    lines = ["| piece | value | source |", "| --- | --- | --- |"]
    for piece in found["pieces"].values():
        lines.append(
            f"| {piece['what']} | {_number(piece['value'])} {piece['unit']} | {piece['source']} |".replace("  ", " ")
        )
    columns = [f"{int(devices):,} devices".replace(",", " ") for devices in found["needs"]]
    lines += ["", f"| needed on average | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for name in next(iter(found["needs"].values())):
        values = [_number(one[name]) for one in found["needs"].values()]
        lines.append(f"| {name} | {' | '.join(values)} |")
    lines += ["", "| edge servers | engines | most devices | first token p50 / p95 | tokens/s | busiest |"]
    lines.append("| --- |" + " --- |" * 5)
    lines += [f"| {one['edges']} | {one['engines']} | {_cells(one)} |" for one in found["clusters"]]
    sweep = found["sweep"]
    lines += [
        "",
        f"| devices of {sweep['edges']} edge servers, {sweep['engines']} engines | first token p50 / p95 | tokens/s "
        "| busiest |",
    ]
    lines.append("| --- |" + " --- |" * 3)
    lines += [f"| {_cells(one)} |" for one in sweep["rows"]]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> str:
    first, busiest = row["first_token_s"], row["busiest"]
    share = f"{busiest}, {row['busy'][busiest]:.0%}".replace("%", " %")
    times = f"{first['p50']:.2f} / {first['p95']:.2f} s"
    return f"{_number(row['devices'])} | {times} | {_number(row['tokens_a_s'])} | {share}"


def _number(value: float) -> str:
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    if "e" in text:
        text = f"{value:.6f}".rstrip("0")
    return text.replace(",", " ")


def draw(found: dict[str, Any], out: Path) -> None:
    """Draw the most devices of each cluster, and first tokens over devices."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    rows = found["sweep"]["rows"]
    devices = [row["devices"] for row in rows]
    for share, style in (("p50", "o-"), ("p95", "s-")):
        left.plot(devices, [row["first_token_s"][share] for row in rows], style, label=f"first token, {share}")
    left.axhline(found["limit_s"], color="grey", linestyle=":", label=f"limit, {found['limit_s']:g} s")
    left.set(xlabel="devices", ylabel="s", yscale="log")
    left.set_title(f"{found['sweep']['edges']} edge servers, {found['sweep']['engines']} engines")
    busy = left.twinx()
    for name in rows[0]["busy"]:
        busy.plot(devices, [row["busy"][name] for row in rows], "--", alpha=0.5, label=name)
    busy.set(ylim=(0, 1.05), ylabel="busy")
    left.legend(loc="upper left", fontsize=8)
    busy.legend(loc="lower right", fontsize=8)
    names = [f"{one['edges']}+{one['engines']}" for one in found["clusters"]]
    right.bar(names, [one["devices"] for one in found["clusters"]])
    right.set(xlabel="edge servers + engines", ylabel="devices", title="most devices below the limit")
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two clusters and a shorter simulated time, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    arguments = parser.parse_args()
    started = time.perf_counter()
    found = measure(seed=arguments.seed, quick=arguments.quick)
    print(tables(found))
    print(f"\n{time.perf_counter() - started:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if arguments.picture:
        draw(found, arguments.picture)


if __name__ == "__main__":
    main()
