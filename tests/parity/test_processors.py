"""Views and picture tokens against the processors of transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tofc.model.checkpoint import Checkpoint
from tofc.model.prompt import load_tokenizer
from tofc.model.views import STD, ViewRule, plan, views
from tofc_lab.verify import checks, step3p7

RELEASED = ViewRule()
NANO = ViewRule(global_size=336, crop_size=224, max_side=1344)
RULES = pytest.mark.parametrize("rule", [RELEASED, NANO], ids=["released", "nano"])
#: the largest difference over all sizes; one resize, in two passes that round, may differ by 2, two resizes by 4
MOST_SEEN = 2


@RULES
def test_plans_are_those_of_transformers(rule: ViewRule) -> None:
    assert step3p7.other_plans(rule, step3p7.sizes(rule, 1000)) == []


@RULES
def test_a_different_rule_is_detected(rule: ViewRule) -> None:
    other = replace(rule, global_size=rule.global_size - 1)
    tried = step3p7.sizes(rule, 0)
    theirs = step3p7.image_processor(rule)
    assert any(
        theirs._plan_patches(*size, rule.global_size, rule.crop_size)[2] != plan(*size, other).window
        for size in tried
        if size == (rule.global_size, rule.global_size)
    )


@RULES
def test_pixels_are_those_of_transformers(rule: ViewRule) -> None:
    g, m = rule.global_size, rule.max_side
    tried = [(1, 1), (31, 124), (20, 131), (37, 33), (g, g), (g + 1, g), (g // 2, g // 3), (g // 2, g // 4)]
    tried += [(g, g // 5), (g * 5 // 4, g), (g * 2, g * 4 // 3), (g * 2, g * 2), (g // 4, g * 3), (g * 3, g // 5)]
    tried += [(m, m // 2), (m + 1, m // 3), (m * 5 // 4, m)]
    apart = {(*size, seed): step3p7.levels_apart(rule, step3p7.noise(size, seed)) for seed, size in enumerate(tried)}
    smooth = Image.linear_gradient("L").resize((g * 3 // 2, g)).convert("RGB")
    assert max(*apart.values(), step3p7.levels_apart(rule, smooth)) <= MOST_SEEN <= step3p7.MOST_LEVELS, apart


@pytest.mark.parametrize(("rule", "count"), [(RELEASED, 200), (NANO, 1000)], ids=["released", "nano"])
def test_pixels_of_random_sizes_are_those_of_transformers(rule: ViewRule, count: int) -> None:
    drawn = step3p7.sizes(rule, count)[-count:]
    apart = {size: step3p7.levels_apart(rule, step3p7.noise(size, seed)) for seed, size in enumerate(drawn)}
    assert max(apart.values()) <= MOST_SEEN, {size: levels for size, levels in apart.items() if levels > MOST_SEEN}


def test_crops_that_hang_over_are_padded_here_but_stretched_in_transformers() -> None:
    image = Image.new("RGB", (800, 200), "white")
    assert step3p7.hangs_over(plan(*image.size, NANO))
    ours = views(image, NANO)[0].pixels
    theirs = np.asarray(step3p7.image_processor(NANO).preprocess(image, return_tensors="np")["pixel_values_local"][0])
    np.testing.assert_allclose(theirs, np.broadcast_to(theirs[:, :1, :1], theirs.shape), atol=1e-5)  # all white
    np.testing.assert_allclose(ours[:, :200], theirs[:, :200], atol=1e-5)
    assert np.all(ours[:, 200:] < 0)


def test_crops_of_a_shrunk_picture_are_cut_after_shrinking_but_before_it_in_transformers() -> None:
    image = step3p7.noise((2000, 1500))
    processor = step3p7.image_processor(NANO)
    scale = 255 * np.array(STD)[:, None, None]
    theirs = np.asarray(processor.preprocess(image, return_tensors="np")["pixel_values_local"][0])
    assert np.abs((views(image, NANO)[0].pixels - theirs) * scale).max() > step3p7.MOST_LEVELS
    assert step3p7.levels_apart(NANO, image) <= MOST_SEEN  # shrunk first


def test_picture_tokens_are_those_of_transformers(tiny: Path) -> None:
    released = replace(Checkpoint.open(tiny).config, global_size=728, crop_size=504)
    assert [released.grid(side) ** 2 for side in (728, 504)] == [169, 81]
    tokenizer = load_tokenizer(Checkpoint.open(tiny))
    tried = [(640, 480), (728, 300), (1024, 768), (1920, 1080), (300, 1300), (2600, 2600)]
    assert {plan(*size, released.rule).crops for size in tried} == {0, 3, 4, 5, 8, 25}
    assert step3p7.other_tokens(released, tokenizer, tried) == []
    assert step3p7.other_tokens(replace(released, crop_size=448), tokenizer, tried[:3]) == []


def test_verify_compares_them(tiny: Path) -> None:
    found = {outcome.name: outcome for outcome in checks.verify(tiny, torchvision=True)}
    for name in ("plans of views", "pixels of views", "picture tokens"):
        assert not found[name].skipped and not found[name].failed, found[name]
