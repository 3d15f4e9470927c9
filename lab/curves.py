"""The curves people would rather look at: training, and answers over features and bytes.

Promises to draw only what is in the logs and in ``accuracy.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from shared import json_text


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def training(run: Path, out: Path) -> None:
    """``tower.jsonl`` and ``decoder.jsonl`` of a run as one picture."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    tower, seen = _lines(run / "tower.jsonl"), 0.0
    places, edges = [], []
    for before, line in zip([None, *tower], tower, strict=False):
        if before is not None and before["stage"] != line["stage"]:
            seen += before["pictures"]
            edges.append(seen / 1000)
        places.append((seen + line["pictures"]) / 1000)
    for name in ("cover", "recall", "precision", "read"):
        left.plot(places, [line["validation"][name] for line in tower], label=name, marker=".")
    for edge in edges:
        left.axvline(edge, color="0.8", zorder=0)
    left.set(xlabel="thousand pictures (lines: larger canvases)", ylabel="validation", title="Tower", ylim=(0, 1))
    left.legend()
    decoder = _lines(run / "decoder.jsonl")
    for n, style in (("36", "-"), ("12", "--")):
        for index, family in enumerate(sorted(decoder[-1]["validation"][n])):
            values = [line["validation"][n][family] for line in decoder]
            label = family if n == "36" else None
            right.plot([line["step"] for line in decoder], values, style, color=f"C{index}", label=label)
    right.set(
        xlabel="steps", ylabel="validation accuracy", title="Decoder (36 features; dashed: merged to 12)", ylim=(0, 1)
    )
    right.legend(ncols=2, fontsize="small")
    figure.savefig(out, dpi=110)


def accuracy(report: Path, out: Path) -> None:
    """Accuracy over the number of features, and over bytes, with 95 % intervals."""
    world = json_text.read(report)["results"]["world"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)

    def points(suffix: str, whole: str) -> list[tuple[float, float, float, float, float]]:
        rows = [(36, world[whole])]
        rows += [
            (int(k.split()[2].rstrip(",")), v)
            for k, v in world.items()
            if k.startswith("merged") and k.endswith(suffix)
        ]
        found = []
        for n, row in sorted(rows, key=lambda one: one[0]):
            middle, (low, high) = row["accuracy"]["all"], row["interval"]["all"]
            found.append((float(n), row["bytes"], middle, middle - low, high - middle))
        return found

    for suffix, whole in (("uncompressed", "uncompressed"), ("packets", "packets")):
        n, size, middle, below, above = zip(*points(suffix, whole), strict=True)
        left.errorbar(n, middle, (below, above), marker="o", capsize=3, label=suffix)
        if suffix == "packets":
            right.errorbar(size, middle, (below, above), marker="o", capsize=3)
            for count, x, y in zip(n, size, middle, strict=True):
                right.annotate(f"{count:.0f}", (x, y), textcoords="offset points", xytext=(-6, 6), ha="right")
    left.set(xlabel="features of a 336 px picture", ylabel="accuracy, all families", title="Merging")
    left.legend()
    right.set(xlabel="bytes of a packet", ylabel="accuracy, all families", title="Packets, of so many features")
    figure.savefig(out, dpi=110)
