"""The pictures of docs/, drawn from the committed measurements, and the labels in them. Needs `make lab`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib import pyplot as plt
from PIL import Image

from tofc.errors import UsageError
from tofc_lab.curve_labels import label_curves
from tofc_lab.nano import curves
from tofc_lab.rate_distortion import figure

RESULTS = Path("benchmarks/results")


def test_every_label_is_nearest_to_its_own_curve_and_none_overlap() -> None:
    x = np.linspace(0, 1, 20).tolist()
    drawn = {f"curve {i}": (x, [i / 5 + 0.1 * value for value in x], f"C{i}") for i in range(5)}
    _, axes = plt.subplots()
    for at, values, colour in drawn.values():
        axes.plot(at, values, color=colour)
    label_curves(axes, drawn)
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert boxes.keys() == drawn.keys()
    for name, box in boxes.items():
        assert not any(box.overlaps(other) for one, other in boxes.items() if one != name)
        assert axes.get_window_extent().containsx(box.x0) and axes.get_window_extent().containsx(box.x1)
        centre = np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
        away = {
            one: np.linalg.norm(axes.transData.transform(np.column_stack([at, values])) - centre, axis=1).min()
            for one, (at, values, _) in drawn.items()
        }
        assert min(away, key=lambda one: float(away[one])) == name
    plt.close("all")


def test_a_file_that_is_not_of_measurements_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"bits": []}')
    with pytest.raises(UsageError, match="must be a file of measurements with 'kinds', has 'bits'"):
        figure.draw(tmp_path / "other.json", tmp_path / "picture.png")


def test_pictures_are_drawn_from_what_is_committed(tmp_path: Path) -> None:
    curves.training(Path("models/nano/training"), tmp_path / "training.png")
    curves.accuracy(RESULTS / "accuracy.json", tmp_path / "accuracy.png")
    figure.draw(RESULTS / "rate_distortion.json", tmp_path / "rate_distortion.png")
    for name in ("training", "accuracy", "rate_distortion"):
        with Image.open(tmp_path / f"{name}.png") as drawn, Image.open(Path("docs") / f"{name}.png") as shown:
            assert drawn.size == shown.size
