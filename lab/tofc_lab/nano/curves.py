"""Figures of nano's training, and of its accuracy over features and bytes.

Promises to draw only what is in the logs and in `accuracy.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter

from tofc_lab import results
from tofc_lab.curve_labels import label_curves
from tofc_lab.nano.tower import TOWER_STAGES

TOWER_SCORES = {
    "cover": "cells whose object\nis named",
    "recall": "objects found",
    "precision": "finds that\nare objects",
    "read": "signs read",
}
FAMILIES = {
    "all": "all families",
    "exist": "exist: is there a cat?",
    "what": "what: what is this?",
    "read": "read: what is on the sign?",
    "cmp": "cmp: more cats than dogs?",
    "rel": "rel: is the cat left of the dog?",
    "side": "side: what is at the top?",
    "count": "count: how many cats?",
}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def training(run: Path, out: Path) -> None:
    """Draw `tower.jsonl` and `decoder.jsonl` of a run: validation scores over the training, one panel per family."""
    figure = plt.figure(figsize=(17, 5.8), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.75))
    _tower(left, _lines(run / "tower.jsonl"))
    _decoder(right, _lines(run / "decoder.jsonl"))
    figure.savefig(out, dpi=100)
    plt.close(figure)


def _tower(figure: Any, tower: list[dict[str, Any]]) -> None:
    axes = figure.subplots()
    before, places, edges = 0.0, [], [(0.0, tower[0]["stage"])]
    for previous, line in zip([None, *tower], tower, strict=False):
        if previous is not None and previous["stage"] != line["stage"]:
            before += previous["pictures"]
            edges.append((before / 1000, line["stage"]))
        places.append((before + line["pictures"]) / 1000)
    curves = {}
    for index, (name, title) in enumerate(TOWER_SCORES.items()):
        values = [line["validation"][name] for line in tower]
        axes.plot(places, values, color=f"C{index}", marker=".")
        curves[title] = (places, values, f"C{index}")
    axes.set(xlabel="thousands of pictures", ylim=(-0.02, 1.04), xlim=(0, places[-1] * 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for edge, stage in edges:
        axes.axvline(edge, color="0.8", zorder=0)
        axes.text(edge, 1.0, f" {TOWER_STAGES[stage].px} px", fontsize=7, color="0.4")
    figure.suptitle("Tower, on validation pictures of each stage's size")
    label_curves(axes, curves)


def _decoder(figure: Any, decoder: list[dict[str, Any]]) -> None:
    axes = figure.subplots(2, 4, sharex=True, sharey=True)
    steps = [line["step"] for line in decoder]
    for axis, (family, title) in zip(axes.flat, FAMILIES.items(), strict=True):
        for n, colour in (("36", "C0"), ("12", "C1")):
            axis.plot(steps, [line["validation"][n][family] for line in decoder], color=colour, marker=".")
        last = [decoder[-1]["validation"][n][family] for n in ("36", "12")]
        axis.set_title(title, fontsize=9)
        note = f"at the end {last[0]:.0%} and {last[1]:.0%}"
        axis.text(0.97, 0.05, note, transform=axis.transAxes, ha="right", fontsize=8)
        axis.grid(axis="y", color="0.9")
    axes[0, 0].set_ylim(0.4, 1.02)
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axis in axes[1]:
        axis.set_xlabel("steps")
    axes[0, 0].text(0.06, 0.3, "all 36 features", color="C0", transform=axes[0, 0].transAxes, fontsize=9)
    axes[0, 0].text(0.06, 0.2, "merged to 12", color="C1", transform=axes[0, 0].transAxes, fontsize=9)
    figure.suptitle("Decoder: questions answered correctly on validation pictures, by family of questions")


def accuracy(report: Path, out: Path) -> None:
    """Draw accuracy over the number of features, and over bytes, with 95 % intervals."""
    world = results.read(report, "results")["world"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)

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

    curves = {}
    for suffix, colour in (("uncompressed", "C0"), ("packets", "C1")):
        n, size, middle, below, above = zip(*points(suffix, suffix), strict=True)
        left.errorbar(n, middle, (below, above), marker="o", capsize=3, color=colour)
        curves["in packets" if suffix == "packets" else suffix] = (n, middle, colour)
        if suffix == "packets":
            right.errorbar(size, middle, (below, above), marker="o", capsize=3, color=colour)
            for count, x, y in zip(n, size, middle, strict=True):
                note = f"{count:.0f} features" if count == n[0] else f"{count:.0f}"
                place = (6, -13) if count < n[-1] else (6, 6)  # the last two may cost the same
                right.annotate(note, (x, y), place, textcoords="offset points", fontsize=9)
    left.set(xlabel="features of a 336 px picture", ylabel="questions answered correctly", title="Accuracy by features")
    right.set(xlabel="bytes of its packet, at the finest quality", title="Accuracy by bytes")
    right.margins(x=0.12)
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    label_curves(left, curves, size=10)
    figure.savefig(out, dpi=110)
    plt.close(figure)
