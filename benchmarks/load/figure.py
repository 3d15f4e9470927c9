"""The figure of a load test: tokens a second and times to the first token over the number of clients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def draw(found: Mapping[str, Any], out: Path) -> None:
    """Write a PNG file; needs matplotlib (`make lab`). `found`: results, each with `rows`, by what they are called."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    for name, result in found.items():
        rows = result["rows"]
        clients = [row["clients"] for row in rows]
        left.plot(clients, [row["tokens_s"] for row in rows], marker="o", label=name)
        (line,) = right.plot(clients, [row["first_token_p50_ms"] for row in rows], marker="o", label=name)
        right.plot(
            clients,
            [row["first_token_p95_ms"] for row in rows],
            marker=".",
            linestyle="--",
            color=line.get_color(),
        )
    for axes in (left, right):
        axes.set(xscale="log", xlabel="clients", xticks=clients, xticklabels=[str(count) for count in clients])
        axes.minorticks_off()
    left.legend(fontsize=8)
    left.set(ylabel="tokens a second", ylim=(0, None))
    right.set(ylabel="first token, ms; dashed: slowest 5 %", yscale="log")
    figure.savefig(out, dpi=110)
    plt.close(figure)
