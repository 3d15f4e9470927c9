"""The figure of one training: its curves, and divergence and agreement over bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter


def draw(log: Path | None, report: dict[str, Any], out: Path) -> None:
    """Draw the report on held-out pictures, and the log `codec.jsonl` of a run if there is one; write a PNG file."""
    count = 2 if log is None else 3
    figure, axes = plt.subplots(1, count, figsize=(14 * count / 3, 4), constrained_layout=True)
    if log is not None:
        _training(log, report, axes[0])
    _answers(report, *axes[-2:])
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _training(log: Path, report: dict[str, Any], left: Any) -> None:
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    through_decoder = [line for line in lines if "distortion" in line and line["step"] > report["warm"]]
    left.plot(
        [line["step"] for line in through_decoder],
        [line["distortion"] for line in through_decoder],
        color="C0",
        marker=".",
    )
    left.set(xlabel="step", title="Training, at the finest quality", yscale="log")
    left.set_ylabel("divergence, nats a token", color="C0")
    bits = left.twinx()
    bits.plot(
        [line["step"] for line in through_decoder],
        [line["bits a feature"] for line in through_decoder],
        color="C1",
        marker=".",
    )
    bits.set_ylabel("bits a feature", color="C1")


def _answers(report: dict[str, Any], middle: Any, right: Any) -> None:
    sizes = [row["bytes"] for row in report["rates"]]
    for axes, measure in ((middle, "divergence"), (right, "agreement")):
        axes.plot(sizes, [row[measure] for row in report["rates"]], marker="o")
        for row in report["rates"]:
            note = f"{row['features'] or 'all'}"
            axes.annotate(note, (row["bytes"], row[measure]), (4, 4), textcoords="offset points", fontsize=8)
        axes.set(xscale="log", xlabel="bytes of a picture; features of a view at each point")
        axes.margins(x=0.1)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(ScalarFormatter())
    middle.set(yscale="log", ylabel="divergence, nats a token")
    right.set_ylabel("answers that agree")
    middle.set_title(f"{report['pictures']['held out']} held-out pictures")
    right.set_title(f"{report['questions']['held out']} questions about them")
