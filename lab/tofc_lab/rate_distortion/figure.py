"""The figure of the comparison: accuracy over bytes.

Promises to draw only what is in `rate_distortion.json`.
"""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from tofc_lab import results
from tofc_lab.curve_labels import OUTLINE, label_curves
from tofc_lab.rate_distortion.hull import hull
from tofc_lab.rate_distortion.outcomes import OURS

TITLE = "Right answers over the bytes of a picture: the further left a curve, the fewer bytes for the same answers"
TITLES = {
    "world": "Pictures of 336 px (nano's world)",
    "easy": "Pictures of easy-VQA, 64 px",
    "large": "Pictures of 420–1050 px, in crops",
}
LEVELS = {"uncompressed": 0.0, "1 point less": 0.01, "3 points less": 0.03}
STYLES = {0.0: "--", 0.01: ":", 0.03: ":"}
SHORT = {
    "PCA + scalar quantisation": "PCA + scalar\nquantisation",
    "PCA behind the projector + scalar quantisation": "PCA behind the\nprojector + scalar\nquantisation",
    "top n in half precision": "top n in half\nprecision",
    "learned image codec (trained here)": "learned image\ncodec",
    "TOFC as published": "TOFC as\npublished",
    "components + context model": "components +\ncontext model",
    "VQ, indices of fixed length": "VQ, fixed\nlength",
    "ECVQ, static table": "ECVQ, static",
    "ECVQ, counts of neighbours": "ECVQ, counts",
    "ECVQ, net over neighbours": "ECVQ, net",
    "residual VQ, static table": "residual,\nstatic",
    "residual VQ, counts of neighbours": "residual,\ncounts",
    "product VQ, static table": "product,\nstatic",
    "product VQ, counts of neighbours": "product,\ncounts",
    OURS: "TOFC\n(this project)",
}
FEATURE_COLOURS = (  # ways to send features
    *("tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown"),
    *("tab:olive", "tab:pink", "tab:gray", "goldenrod", "yellowgreen", "rosybrown", "indigo", "slategray", "teal"),
)
IMAGE_COLOURS = ("#08306b", "#2f9ae0", "#b0258f", "#0d9488", "#5b6abf")  # image codecs
LOWEST = 0.135  # accuracy under uncompressed where the axis ends


def draw(report: Path, out: Path) -> None:
    """Write `out`, a PNG file: a panel for each kind of pictures, with dots for settings and lines for their hulls."""
    kinds = results.read(report, "kinds")
    figure, axes = plt.subplot_mosaic(
        [["world", "easy"], ["world", "large"]], figsize=(15, 9), width_ratios=(1.45, 1), layout="constrained"
    )
    figure.suptitle(TITLE, fontsize=14)
    names = [name for name in kinds["world"]["methods"] if name != OURS]
    features = [name for name in names if name in kinds["large"]["methods"] and _sends_features(kinds, name)]
    images = [name for name in names if name not in features]
    colours = {
        OURS: "black",
        **dict(zip(features, cycle(FEATURE_COLOURS), strict=False)),
        **dict(zip(images, cycle(IMAGE_COLOURS), strict=False)),
    }
    curves = {kind: _panel(axes[kind], kind, _shown(kind, found), colours) for kind, found in kinds.items()}
    for kind, found in curves.items():
        label_curves(axes[kind], found, size=10 if kind == "world" else 8)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _shown(kind: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return what a panel shows: the small ones have no room for methods of several indices per feature."""
    left_out = () if kind == "world" else ("residual VQ", "product VQ")
    return found | {"methods": {name: one for name, one in found["methods"].items() if not name.startswith(left_out)}}


def _sends_features(kinds: dict[str, Any], name: str) -> bool:
    """Return whether a method sends features: then the names of its settings contain their number."""
    return all("features" in point["setting"] for point in kinds["world"]["methods"][name]["points"])


def _panel(axis: Any, kind: str, found: dict[str, Any], colours: dict[str, str]) -> dict[str, Any]:
    """Draw a kind's panel without labels, and return its curves."""
    best = found["uncompressed"]["all"]
    curves: dict[str, Any] = {}
    for method, measured in found["methods"].items():
        points = [one for one in measured["points"] if one["chosen"]]
        size, accuracy = [one["bytes"] for one in points], [one["accuracy"]["all"] for one in points]
        kept = hull(size, accuracy)
        x, y = [size[i] for i in kept], [accuracy[i] for i in kept]
        ours, colour = method == OURS, colours[method]
        axis.plot(size, accuracy, ".", color=colour, alpha=0.45)
        axis.plot(x, y, color=colour, linewidth=3 if ours else 1.5, zorder=3 if ours else 2)
        curves[SHORT.get(method, method)] = (x, y, colour)
    axis.set(xscale="log", ylim=(best - LOWEST, best + 0.014), title=TITLES[kind])
    low, high = axis.get_xlim()
    axis.set_xlim(low / 1.5, high * 1.5)
    axis.set(xlabel="bytes of a picture", ylabel="questions answered correctly")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", " ")))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for name, loss in LEVELS.items():
        axis.axhline(best - loss, color="0.45", linestyle=STYLES[loss], linewidth=1, zorder=1)
        axis.text(1.01, best - loss, name, transform=axis.get_yaxis_transform(), va="center", fontsize=9, color="0.3")
    for drop, loss in (("1 point", 0.01), ("3 points", 0.03)):
        needed = found["methods"][OURS]["bytes"]["all"][drop][0]
        if needed is not None:
            axis.plot(needed, best - loss, "o", color="black", zorder=4)
            note = (needed, best - loss), (6, -12)
            axis.annotate(f"{needed:.0f} bytes", *note, textcoords="offset points", zorder=4, path_effects=[OUTLINE])
    return curves
