"""Bytes at equal answers: the hull, the outcomes and the simple codecs behind the comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tofc.codec.files import load_config
from tofc.model.shipped import NANO
from tofc_lab.nano.costs import packet_bytes
from tofc_lab.rate_distortion import simple
from tofc_lab.rate_distortion.hull import bytes_at, hull
from tofc_lab.rate_distortion.images import QUALITIES, ImageSetting, files
from tofc_lab.rate_distortion.outcomes import FAMILIES, OURS, Outcomes
from tofc_lab.rate_distortion.setting import setting_name

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "rate_distortion.json"

POINTS = st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 1)), min_size=1, max_size=12)


@given(POINTS)
def test_no_setting_lies_above_the_hull(points: list[tuple[int, float]]) -> None:
    size, accuracy = zip(*points, strict=True)
    kept = hull(size, accuracy)
    x, y = np.log([size[i] for i in kept]), np.array([accuracy[i] for i in kept])
    assert (np.diff(x) > 0).all()
    assert (np.diff(y) > 0).all()
    assert size[kept[0]] == min(size)
    for one, reached in points:
        assert reached <= np.interp(np.log(one), x, y) + 1e-9


@given(POINTS, st.floats(0, 1))
def test_bytes_at_an_accuracy_lie_between_settings_or_nowhere(points: list[tuple[int, float]], wanted: float) -> None:
    size, accuracy = zip(*points, strict=True)
    found = bytes_at(size, accuracy, wanted)
    if wanted > max(accuracy):
        assert found is None
    else:
        assert found is not None
        assert min(size) * 0.999 <= found <= max(size) * 1.001


def test_a_method_with_more_bytes_never_needs_fewer() -> None:
    accuracy = [0.7, 0.8, 0.9]
    cheap, dear = (bytes_at([size * k for size in (10, 30, 80)], accuracy, 0.85) for k in (1, 3))
    assert cheap is not None
    assert dear == pytest.approx(3 * cheap)


def test_outcomes_are_kept_and_resampled(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    asked = rng.integers(0, 3, (20, len(FAMILIES))).astype(float)
    one = Outcomes(size=rng.uniform(10, 99, 20), tokens=np.full(20, 12.0), right=np.minimum(asked, 1), asked=asked)
    one.save(tmp_path / "a" / "one.npz")
    again = Outcomes.load(tmp_path / "a" / "one.npz")
    every, first = np.ones((1, 20)), np.eye(20)[:1]
    assert again.bytes(every) == pytest.approx(one.size.mean())
    assert again.bytes(first) == pytest.approx(one.size[0])
    assert again.accuracy(every) == pytest.approx(one.right.sum() / one.asked.sum())
    assert again.accuracy(every, "read") == pytest.approx(one.right[:, 6].sum() / one.asked[:, 6].sum())


def test_the_simple_codecs_lose_less_for_more_bytes() -> None:
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(600, 6)) @ rng.normal(size=(6, 24))).astype(np.float32)
    view = x[:36]
    for coarse, fine in (
        tuple(simple.Components.fit(x, np.eye(24), 6, step).reduce(36) for step in (1.0, 0.1)),
        (simple.levels(x, 2, 36), simple.levels(x, 8, 36)),
        (simple.outstanding(x, np.eye(24), 4), simple.outstanding(x, np.eye(24), 36)),
    ):
        (less, _, few), (more, cells, many) = coarse(view), fine(view)
        assert packet_bytes([few]) < packet_bytes([many])
        assert np.abs(more - view[cells]).mean() < 0.05 * np.abs(view).mean()
        if len(less) == len(view):
            assert np.abs(less - view).mean() > np.abs(more - view).mean()


def test_every_image_codec_is_tried_at_several_scales() -> None:
    for codec in QUALITIES:
        tried = files(codec)
        assert len({one.folder for one in tried}) == len(tried) > 8
        assert ImageSetting(codec, min(QUALITIES[codec]), 1.0) in tried


@pytest.mark.parametrize(
    ("method", "folder"),
    [(OURS, "."), ("components + context model", "codecs/context"), ("TOFC as published", "codecs/published")],
)
def test_nanos_crops_are_merged_unless_that_costs_bytes_and_answers(method: str, folder: str) -> None:
    """Each rate's `crop_features` against the other way, on validation pictures; rates still ascend by bytes."""
    config = load_config(NANO / folder)
    points = {
        point["setting"]: (point["bytes"], point["accuracy"]["all"])
        for point in json.loads(RESULTS.read_text())["kinds"]["large"]["validation"][method]
    }
    sizes = []
    for rate, limit in zip(config.rates, config.crop_limits, strict=True):
        size, accuracy = points[setting_name(*rate, limit)]
        other_size, other_accuracy = points[setting_name(*rate, 4 if limit is None else None)]
        assert size < other_size or accuracy > other_accuracy, rate
        sizes.append(size)
    assert sizes == sorted(sizes)
