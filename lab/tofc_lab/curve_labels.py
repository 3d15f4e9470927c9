"""Labels beside the curves of a picture, instead of a legend.

Promises a label for every curve that is inside the axes, near it and, where there is room, away from other curves and
labels. Leaves drawing the curves to the caller, who must have set the limits of the axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.transforms import Bbox

GAP_PX = 5.0  # between a curve and its label
STEPS = 60  # places tried along a curve
#: keeps text readable on lines
OUTLINE = patheffects.withStroke(linewidth=2.5, foreground="white")


def label_curves(
    axes: Any, curves: Mapping[str, tuple[Sequence[float], Sequence[float], str]], *, size: float = 8.0
) -> None:
    """Write the name of each curve (x, y, colour) beside it, in its colour; `size` is the height in points."""
    figure = axes.figure
    figure.canvas.draw()  # computes the layout; before that, positions in pixels are not known
    inside = axes.get_window_extent()
    paths = {name: _visible(_pixels(axes, x, y), inside) for name, (x, y, _) in curves.items()}
    taken: list[Bbox] = [text.get_window_extent() for text in axes.texts]
    # Curves with the fewest possible places come first.
    for name in sorted(paths, key=lambda name: len(paths[name])):
        others = np.concatenate([np.zeros((0, 2)), *(path for other, path in paths.items() if other != name)])
        text = axes.text(0, 0, name, color=curves[name][2], fontsize=size, linespacing=1.05)
        text.set_path_effects([OUTLINE])
        width, height = text.get_window_extent().size
        best, lowest = None, np.inf
        for x, y in paths[name]:
            for left in (x + GAP_PX, x - GAP_PX - width):
                for bottom in (y - height / 2, y - height, y):
                    box = Bbox.from_bounds(left, bottom, width, height)
                    cost = _cost(box, inside, taken, others, paths[name])
                    if cost < lowest:
                        best, lowest = box, cost
        if best is None:  # none of the curve is inside the axes
            text.remove()
            continue
        taken.append(best)
        text.set_position(axes.transData.inverted().transform((best.x0, best.y0)))
        text.set_verticalalignment("bottom")


def _pixels(axes: Any, x: Sequence[float], y: Sequence[float]) -> np.ndarray[Any, Any]:
    """Return points along the curve in pixels [n, 2], straight between the given points as matplotlib draws them."""
    corners = axes.transData.transform(np.column_stack([x, y]))
    at = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    steps = np.linspace(0, at[-1], max(2, int(at[-1] / 4)))
    return np.column_stack([np.interp(steps, at, corners[:, i]) for i in (0, 1)])


def _visible(path: np.ndarray[Any, Any], inside: Bbox) -> np.ndarray[Any, Any]:
    """Return the points inside the axes, at most `STEPS` of them."""
    found = path[[inside.contains(*point) for point in path]]
    return found[:: max(1, len(found) // STEPS)]


def _cost(box: Bbox, inside: Bbox, taken: list[Bbox], others: np.ndarray[Any, Any], own: np.ndarray[Any, Any]) -> float:
    """Return the cost of a place: outside the axes, on another label, on a curve, or closer to another curve."""
    frame = inside.padded(-3)
    outside = not (frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1)
    overlaps = sum(box.padded(3).overlaps(one) for one in taken)
    on_curves = sum(_inside(box.padded(2), path) for path in (others, own))
    near = _inside(box.padded(12), others)
    return float(1000 * outside + 300 * overlaps + 20 * on_curves + 4 * near)


def _inside(box: Bbox, points: np.ndarray[Any, Any]) -> int:
    x, y = points.T
    return int(((box.x0 < x) & (x < box.x1) & (box.y0 < y) & (y < box.y1)).sum())
