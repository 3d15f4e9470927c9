from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tofc.errors import ImageError
from tofc.model.views import MEAN, STD, ViewRule, _pad_and_shrink, plan, views

RELEASED = ViewRule()
NANO = ViewRule(global_size=336, crop_size=224, max_side=1344)
WHITE, BLACK = ((1 - np.array(MEAN)) / STD, -np.array(MEAN) / STD)


@pytest.mark.parametrize(
    ("size", "rows", "columns", "window"),
    [
        ((640, 480), 0, 0, 0),
        ((1024, 768), 2, 2, 504),
        ((1920, 1080), 2, 4, 504),
        ((1080, 1920), 4, 2, 504),
        ((4032, 3024), 5, 6, 504),
        ((728, 728), 0, 0, 0),  # exactly the global size is small
        ((728, 486), 0, 0, 0),  # 1.498
        ((728, 485), 1, 2, 485),  # 1.501: elongated, though small
        ((600, 400), 0, 0, 0),  # exactly 1.5 is not elongated
        ((729, 728), 2, 2, 504),  # 225 px over one window
        ((1108, 504), 1, 2, 504),  # 100 px over: no more than a fifth
        ((1109, 504), 1, 3, 504),  # 101 px over
        ((2000, 500), 1, 4, 504),  # 4 is not yet a ribbon; the short side is kept
        ((2000, 499), 1, 4, 499),  # a ribbon: windows of the short side
        ((3024, 100), 1, 31, 100),
        ((100, 3024), 31, 1, 100),
        ((6048, 6048), 6, 6, 504),
    ],
)
def test_windows_follow_the_released_rule(size: tuple[int, int], rows: int, columns: int, window: int) -> None:
    found = plan(*size, RELEASED)
    assert (found.rows, found.columns, found.window) == (rows, columns, window)
    assert found.crops == rows * columns


@pytest.mark.parametrize(("size", "crops"), [((336, 336), 0), ((337, 336), 4), ((336, 224), 0), ((336, 223), 2)])
def test_nano_has_the_same_rule_at_its_sizes(size: tuple[int, int], crops: int) -> None:
    assert plan(*size, NANO).crops == crops


def test_a_sliver_is_padded_to_a_square_and_a_large_picture_shrunk() -> None:
    assert plan(20, 300, RELEASED).padded == (300, 300)
    assert plan(20, 80, RELEASED).padded == (20, 80)  # exactly 4
    assert plan(32, 300, RELEASED).padded == (32, 300)
    assert plan(4032, 3024, RELEASED).shrunk == (3024, 2268)
    assert plan(4032, 3024, RELEASED).resized == (3024, 2520)


@pytest.mark.parametrize("rule", [RELEASED, NANO])
def test_no_picture_makes_more_views_than_a_square_one(rule: ViewRule) -> None:
    assert plan(9000, 9000, rule).crops + 1 == rule.max_views == 37
    assert plan(4032, 3024, rule).crops < rule.max_views
    with pytest.raises(ImageError, match=r"100000 × 32 px, which makes \d+ views; at most 37"):
        plan(100_000, 32, rule)


def test_a_sliver_too_long_to_pad_is_refused() -> None:
    assert plan(10_000, 31, RELEASED).padded == (10_000, 10_000)
    with pytest.raises(ImageError, match="65535 × 31 px; a picture this narrow must be at most 10000 px long"):
        plan(65_535, 31, RELEASED)


def test_crops_come_first_row_by_row_and_the_global_view_last() -> None:
    found = views(Image.new("RGB", (1000, 700)), NANO)
    cut = plan(1000, 700, NANO)
    assert [(v.row, v.column) for v in found[:-1]] == [(r, c) for r in range(cut.rows) for c in range(cut.columns)]
    assert [v.kind for v in found] == ["crop"] * cut.crops + ["global"]
    assert all(v.pixels.shape == (3, 224, 224) and v.pixels.dtype == np.float32 for v in found[:-1])
    assert found[-1].pixels.shape == (3, 336, 336)


def test_windows_are_cut_from_the_canvas_unresized() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (448, 672, 3), np.uint8)  # 2 × 3 windows exactly
    found = views(Image.fromarray(pixels), NANO)
    assert len(found) == 7
    normal = ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)
    for view in found[:-1]:
        top, left = 224 * view.row, 224 * view.column
        np.testing.assert_allclose(view.pixels, normal[:, top : top + 224, left : left + 224], atol=1e-6)


def test_what_hangs_over_is_black_and_the_global_view_is_squashed() -> None:
    # 800 × 200: a side shorter than the window is kept, so that each window hangs over by 24 px
    *crops, whole = views(Image.new("RGB", (800, 200), "white"), NANO)
    assert len(crops) == 4
    for crop in crops:
        np.testing.assert_allclose(crop.pixels[:, 199, 100], WHITE, atol=1e-5)
        np.testing.assert_allclose(crop.pixels[:, 200, 100], BLACK, atol=1e-5)
    np.testing.assert_allclose(whole.pixels.min((1, 2)), WHITE, atol=1e-5)


def test_the_padding_of_a_sliver_is_black_below_and_right() -> None:
    (whole,) = views(Image.new("RGB", (20, 300), "white"), NANO)
    np.testing.assert_allclose(whole.pixels[:, 150, 0], WHITE, atol=1e-5)
    np.testing.assert_allclose(whole.pixels[:, 150, 100], BLACK, atol=1e-5)


@pytest.mark.parametrize("rule", [RELEASED, NANO], ids=["released", "nano"])
@pytest.mark.parametrize(
    "size", [(20, 3100), (3100, 20), (31, 9990), (9990, 31), (1, 3025), (3025, 1), (7, 1345), (20, 300)]
)
def test_a_sliver_is_shrunk_as_its_square_would_be(size: tuple[int, int], rule: ViewRule) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    cut = plan(*size, rule)
    square = Image.new("RGB", cut.padded)
    square.paste(picture)
    assert _pad_and_shrink(picture, cut) == square.resize(cut.shrunk, Image.Resampling.BILINEAR)
