"""Presets and byte budgets: what a picture's packets may take."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from device_client.encoder import TowerEncoder
from device_client.rate import RateChoice, RateController
from tofc.codec.codec import Codec, CodedView
from tofc.codec.fake import fake_features, fake_weights
from tofc.codec.files import load_weights
from tofc.errors import EncoderError, UsageError
from tofc.model.shipped import NANO

CODEC = Codec(fake_weights(Q=3))
VIEWS = [fake_features(CODEC.weights, cells, seed=cells + i) for i, cells in enumerate((16, 16, 36))]


def sizes(budget: int, together: int = 1) -> list[int]:
    """Return the bytes of each packet, which has `together` views."""
    choice = RateChoice(budget_bytes=budget, views_per_packet=together)
    controller = RateController(CODEC, choice, [len(view) for view in VIEWS])
    coded = [controller.code(view) for view in VIEWS]
    return [len(CODEC.write(coded[first : first + together])) for first in range(0, len(coded), together)]


LOWEST, HIGHEST = (sum(len(CODEC.encode(view, quality=quality)) for view in VIEWS) for quality in (0, 2))


@given(st.integers(1, 2 * HIGHEST), st.sampled_from([1, 2, 8]))
def test_a_picture_never_takes_more_than_its_budget(budget: int, together: int) -> None:
    lowest = sum(
        len(CODEC.write([CODEC.code(view, quality=0) for view in VIEWS[first : first + together]]))
        for first in range(0, len(VIEWS), together)
    )
    if budget < lowest:
        with pytest.raises(EncoderError, match=f"--budget-bytes {budget} is too little.* should be enough") as error:
            sizes(budget, together)
        enough = re.findall(r"\d+", str(error.value))[-1]
        assert sizes(int(enough), together)
    else:
        try:
            assert lowest <= sum(sizes(budget, together)) <= budget
        except EncoderError:  # what the first views took within their share is missing at the last
            assert budget < 1.2 * lowest


def test_a_large_budget_gives_the_highest_rate_and_a_small_one_the_lowest() -> None:
    assert sum(sizes(2 * HIGHEST)) == HIGHEST
    assert sum(sizes(int(1.2 * LOWEST))) < HIGHEST


def test_what_a_view_leaves_goes_to_the_next() -> None:
    blank = np.zeros_like(VIEWS[0])  # costs next to nothing
    budget = HIGHEST - 10
    controller = RateController(CODEC, RateChoice(budget_bytes=budget, views_per_packet=1), [16, 36])
    taken = len(CODEC.write([controller.code(blank)]))
    assert taken < budget * 16 // 52
    finest = len(CODEC.encode(VIEWS[2], quality=2))
    assert finest <= budget - taken
    assert len(CODEC.write([controller.code(VIEWS[2])])) == finest


def test_presets_of_nano_cost_more_from_one_to_the_next() -> None:
    config = load_weights(NANO).config
    codec = Codec.load(NANO)
    views = [fake for _, fake in zip(range(5), _tower_features(), strict=False)]
    sizes = [
        sum(len(codec.encode(v, *_cap(config.rates[at], len(v)))) for v in views) for at in config.presets.values()
    ]
    assert sizes == sorted(set(sizes))
    assert config.preset in config.presets


def _tower_features() -> list[np.ndarray]:
    """Features as nano's codec expects them: its own synthesis of small random symbols."""
    codec = Codec.load(NANO)
    rng = np.random.default_rng(0)
    scale = 2.0 / (1 + np.arange(codec.config.components) / 4)
    q = [np.rint(rng.laplace(size=(36, codec.config.components)) * scale).astype(np.int64) for _ in range(5)]
    return [codec.dequantise(one, codec.config.qualities - 1) for one in q]


def _cap(rate: tuple[int | None, int], total: int) -> tuple[int, int]:
    return min(rate[0] or total, total), rate[1]


@pytest.mark.parametrize("choice", [RateChoice(), RateChoice(features=9), RateChoice(budget_bytes=2 * HIGHEST)])
def test_crops_keep_no_more_than_the_codec_says(choice: RateChoice) -> None:
    config = replace(CODEC.config, crop_features=3)
    codec = Codec(replace(CODEC.weights, config=config))
    controller = RateController(codec, choice, [len(view) for view in VIEWS])
    assert [controller.code(view).layout.n for view in VIEWS] == [3, 3, choice.features or 36]


#: not merged, at most 9 features of a crop, at most 3
BY_RATE = Codec(
    replace(
        CODEC.weights,
        config=replace(
            CODEC.config, presets={"low": 0, "medium": 1, "high": 2}, preset="high", crop_features=(None, 9, 3)
        ),
    )
)


@pytest.mark.parametrize(
    ("choice", "kept"),
    [
        (RateChoice(preset="low"), [16, 16, 36]),
        (RateChoice(preset="medium"), [9, 9, 36]),
        (RateChoice(), [3, 3, 36]),
        (RateChoice(preset="low", features=12), [12, 12, 12]),
        (RateChoice(preset="medium", features=12), [9, 9, 12]),
        (RateChoice(preset="medium", features=5), [5, 5, 5]),
        (RateChoice(budget_bytes=2 * HIGHEST), [3, 3, 36]),
    ],
)
def test_crops_keep_what_the_codec_says_for_the_rate(choice: RateChoice, kept: list[int]) -> None:
    controller = RateController(BY_RATE, choice, [len(view) for view in VIEWS])
    assert [controller.code(view).layout.n for view in VIEWS] == kept


def test_a_budget_takes_each_rates_own_features_of_a_crop() -> None:
    codec = Codec(replace(CODEC.weights, config=replace(CODEC.config, crop_features=(3, 9, None))))
    for quality, n in enumerate((3, 9, 16)):
        size = len(codec.encode(VIEWS[0], n, quality))
        layout = RateController(codec, RateChoice(budget_bytes=2 * size), [16, 16]).code(VIEWS[0]).layout
        assert (layout.n, layout.quality) == (n, quality)


def test_a_view_is_encoded_once_at_each_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = tuple((features, quality) for quality in (0, 1) for features in (2, 3, 16, None))
    config = replace(CODEC.config, crop_features=3, rates=rates, presets={"all": len(rates) - 1}, preset="all")
    codec, tried = Codec(replace(CODEC.weights, config=config)), []
    really = codec.code

    def code(features: np.ndarray, *rate: int) -> CodedView:
        tried.append(rate)
        return really(features, *rate)

    monkeypatch.setattr(codec, "code", code)
    lowest = len(codec.write([really(VIEWS[0], 2, 0)]))
    RateController(codec, RateChoice(budget_bytes=2 * lowest), [16, 16]).code(VIEWS[0])
    assert tried == [(2, 0), (3, 1), (2, 1), (3, 0)]


def test_settings_are_equal_exactly_when_packets_are() -> None:
    config = CODEC.config
    same = [RateChoice(), RateChoice(preset="high"), RateChoice(preset=config.preset)]
    assert len({one.setting(config) for one in same}) == 1
    others = [RateChoice(preset="low"), RateChoice(features=5), RateChoice(features=6), RateChoice(budget_bytes=5)]
    assert len({one.setting(config) for one in [*others, RateChoice(), RateChoice(budget_bytes=6)]}) == 6


def test_settings_tell_crops_of_one_quality_apart() -> None:
    """Two presets may differ in their crops alone, and `--features` may make them alike."""
    config = replace(
        CODEC.config,
        rates=((None, 1), (None, 1)),
        presets={"low": 0, "high": 1},
        preset="high",
        crop_features=(None, 4),
    )
    low, high = RateChoice(preset="low"), RateChoice(preset="high")
    assert low.setting(config) != high.setting(config) == RateChoice().setting(config)
    low, high = replace(low, features=4), replace(high, features=4)
    assert low.setting(config) == high.setting(config)


def test_the_real_encoder_keeps_the_budget(tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    with Image.open(NANO / "example.jpg") as example:
        example.resize((700, 500)).save(large)
    with pytest.raises(UsageError, match="--preset tiny is not known; this codec has low, medium, high, max"):
        TowerEncoder.open(NANO, RateChoice(preset="tiny"))
    encoder = TowerEncoder.open(NANO, RateChoice(budget_bytes=100))
    encoder.load()
    with Image.open(large) as image:
        found = list(encoder.encode(image.convert("RGB")))
    assert [one.joins for one in found] == [0] * 7 + [8, 0, 2]
    assert sum(len(one.joined) for one in found) <= 100 < sum(len(one.packet) for one in found)
