"""How far the goals for slow links are reached, counted from the last run of `link`, and how much of that is noise.

    python -m benchmarks.link_goals      # the numbers of the table of goals in docs/latency.md

    benchmarks/results/link.json ─ ratios of medians ─→ ranges at 25 KB/s, links within a limit
                                 └ single questions ──→ auto beside the same way; one way beside itself

Promises that ratios are compared unrounded. Leaves measuring, and the tables of the links, to `link`.
"""

from __future__ import annotations

import json
import random
import statistics
from typing import Any

from benchmarks.link import CHOICE, PICTURES, RATES, ROOT, ratio
from device_client.bench import AUTO, EQUAL, FEATURES, PLAIN

Row = dict[str, Any]
WAY_OF = {"features": FEATURES, "image": EQUAL}  # by the mode that auto chose
SLOWEST, AUTO_LIMIT = RATES[0], 1.05
DRAWS = 1000  # of each link


def lines(rows: list[Row]) -> list[str]:
    """Return what there is to say of all goals, a line each."""
    found = []
    for what, picture in ((what, picture) for what in (PLAIN, EQUAL) for picture in PICTURES):
        if slow := [ratio(row, what) for row in rows if row["picture"] == picture and _rate(row) == SLOWEST]:
            found.append(f"{SLOWEST}, {picture}, over {what}: {min(slow):.2f} to {max(slow):.2f}")
    for what in (EQUAL, PLAIN):
        found.append(f"over {what} at most 1.0: {_within([ratio(row, what) for row in rows], 1.0)}")
        for rate in RATES:
            if at_rate := [ratio(row, what) for row in rows if _rate(row) == rate]:
                found.append(f"    {rate}: {_within(at_rate, 1.0)}")
    for what in (AUTO, CHOICE):
        found.append(f"{what} at most {AUTO_LIMIT}: {_within([ratio(row, what) for row in rows], AUTO_LIMIT)}")
    for mode, way in WAY_OF.items():
        if beside := beside_the_same_way(rows, mode):
            median = statistics.median(beside)
            found.append(f"auto's {mode} over {way} of the same round: median {median:.3f} of {len(beside)}")
    found.append(f"the better way over itself, more than {AUTO_LIMIT}: {over_itself(rows):.0%} of links")
    return found


def beside_the_same_way(rows: list[Row], mode: str) -> list[float]:
    """Return the first tokens of auto's questions that went in a mode over those of that way in the same round."""
    return [
        ms / row["ways"][WAY_OF[mode]]["first_tokens_ms"][turn]
        for row in rows
        for turn, ms in enumerate(row["ways"][AUTO]["first_tokens_ms"])
        if row["ways"][AUTO]["modes"][turn] == mode
    ]


def over_itself(rows: list[Row], *, seed: int = 0) -> float:
    """Return how often an auto that always chooses rightly would miss its limit by noise alone.

    Both medians are of questions drawn, with replacement, from those of the better way.
    """
    drawn, missed = random.Random(seed), 0
    for row in rows:
        better = min((row["ways"][name] for name in (FEATURES, EQUAL)), key=lambda way: float(way["first_token_ms"]))
        times = better["first_tokens_ms"]
        for _ in range(DRAWS):
            one, other = (statistics.median(drawn.choices(times, k=len(times))) for _ in range(2))
            missed += one / other > AUTO_LIMIT
    return missed / (DRAWS * len(rows))


def _rate(row: Row) -> str:
    return str(row["link"]).split(",")[0]


def _within(ratios: list[float], limit: float) -> str:
    kept = sum(one <= limit for one in ratios)
    return f"{kept} of {len(ratios)}, median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"


def main() -> None:
    results = ROOT / "benchmarks" / "results" / "link.json"
    print("\n".join(lines(json.loads(results.read_text(encoding="utf-8"))["rows"])))


if __name__ == "__main__":
    main()
