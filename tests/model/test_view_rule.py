"""The rule for views implemented a second time, in plain arithmetic, with crops cut in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from tofc.errors import ImageError
from tofc.model.views import MEAN, STD, ViewRule, plan, views
from tofc_lab.verify.step3p7 import hangs_over, noise, sizes

RELEASED = ViewRule()
NANO = ViewRule(global_size=336, crop_size=224, max_side=1344)
Rule = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int, int, int]


def written(width: int, height: int, rule: ViewRule) -> Rule:
    """Return padded, shrunk, resized, window, rows, columns: steps 1 to 4 of the released preprocessing."""
    if min(width, height) < 32 and (width > 4 * height or height > 4 * width):
        width = height = max(width, height)
    padded = (width, height)
    longest = max(width, height)
    if longest > rule.max_side:
        factor = rule.max_side / longest
        width, height = math.floor(width * factor), math.floor(height * factor)
    long, short = max(width, height), min(width, height)
    shrunk = (width, height)
    if long <= rule.global_size and 2 * long <= 3 * short:
        return padded, shrunk, shrunk, 0, 0, 0
    if long <= rule.global_size:
        window = short
    elif long > 4 * short:
        window = min(short, rule.crop_size)
    else:
        window = rule.crop_size
    snapped = []
    for side in (width, height):
        times, left = divmod(side, window)
        more = 1 if 5 * left > window else 0
        snapped.append(side if times == 0 else (times + more) * window)
    columns, rows = (math.ceil(side / window) for side in snapped)
    return padded, shrunk, (snapped[0], snapped[1]), window, rows, columns


@pytest.mark.parametrize("rule", [RELEASED, NANO], ids=["released", "nano"])
def test_plans_follow_the_written_rule(rule: ViewRule) -> None:
    tried = sizes(rule, 1000)
    kinds = set()
    refused = 0
    for width, height in tried:
        try:
            found = plan(width, height, rule)
        except ImageError:  # a ribbon: by the rule it would have more views than any picture may
            rows, columns = written(width, height, rule)[-2:]
            assert rows * columns >= rule.max_views
            refused += 1
            continue
        wanted = written(width, height, rule)
        got = (found.padded, found.shrunk, found.resized, found.window, found.rows, found.columns)
        assert got == wanted, (width, height)
        kinds.add((found.padded != (width, height), found.shrunk != found.padded, found.window, hangs_over(found)))
    assert refused < 20
    # slivers, shrunk ones, no crops, windows of every kind, overhang
    assert {any(one[i] for one in kinds) for i in range(4)} == {True} and any(one[2] == 0 for one in kinds)
    assert {rule.crop_size} < {one[2] for one in kinds}


@pytest.mark.parametrize("size", [(1000, 300), (700, 700), (330, 100), (2000, 900), (90, 500), (20, 130)])
def test_pixels_follow_the_written_rule(size: tuple[int, int]) -> None:
    padded, shrunk, resized, window, rows, columns = written(*size, NANO)

    def scaled(image: Image.Image, width: int, height: int) -> Image.Image:
        return image.resize((width, height), Image.Resampling.BILINEAR)

    def normal(image: Image.Image) -> np.ndarray:
        return ((np.asarray(image) / 255 - MEAN) / STD).transpose(2, 0, 1)

    picture = np.zeros((padded[1], padded[0], 3), np.uint8)
    picture[: size[1], : size[0]] = np.asarray(noise(size))
    image = scaled(Image.fromarray(picture), *shrunk)
    wanted = []
    if window:
        canvas = np.zeros((rows * window, columns * window, 3), np.uint8)
        canvas[: resized[1], : resized[0]] = np.asarray(scaled(image, *resized))
        cut = canvas.reshape(rows, window, columns, window, 3).swapaxes(1, 2).reshape(-1, window, window, 3)
        wanted = [normal(scaled(Image.fromarray(one), 224, 224)) for one in cut]
    wanted.append(normal(scaled(image, 336, 336)))
    found = views(noise(size), NANO)
    assert len(found) == len(wanted)
    for view, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(view.pixels, expected, atol=1e-5)
