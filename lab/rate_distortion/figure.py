"""Answers over bytes: the comparison as one picture.

Promises to draw only what is in ``rate_distortion.json``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from lab.rate_distortion.hull import hull
from lab.rate_distortion.outcomes import OURS
from shared import json_text

TITLES = {"world": "336 px pictures", "easy": "easy-VQA", "large": "pictures of 420–1050 px, in crops"}


def draw(report: Path, out: Path) -> None:
    """One panel a kind of picture; dots are settings, lines their hulls, dashed the uncompressed features."""
    kinds = json_text.read(report)["kinds"]
    figure, axes = plt.subplots(1, len(kinds), figsize=(5 * len(kinds), 5.2), constrained_layout=True)
    names = list(kinds["world"]["methods"])
    for axis, (kind, found) in zip(axes, kinds.items(), strict=True):
        best = found["uncompressed"]["all"]
        axis.axhline(best, color="0.4", linestyle="--", linewidth=1)
        for method, measured in found["methods"].items():
            points = [one for one in measured["points"] if one["chosen"]]
            size, accuracy = [one["bytes"] for one in points], [one["accuracy"]["all"] for one in points]
            kept = hull(size, accuracy)
            ours = method == OURS
            colour = "k" if ours else f"C{names.index(method)}"
            axis.plot(size, accuracy, ".", color=colour, alpha=0.5)
            axis.plot(
                [size[i] for i in kept],
                [accuracy[i] for i in kept],
                color=colour,
                linewidth=2.5 if ours else 1.3,
                label=method,
            )
        axis.set(xscale="log", xlabel="bytes of a picture", title=TITLES[kind], ylim=(best - 0.13, best + 0.01))
    axes[0].set_ylabel("share of right answers")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=5)
    figure.savefig(out, dpi=110)
