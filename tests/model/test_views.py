import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.model.open_image import open_image
from shared.model.views import MEAN, STD, ImageError, ViewRule, plan, views

RELEASED = ViewRule()
NANO = ViewRule(global_size=336, crop_size=224, max_side=1344)
WHITE, BLACK = ((1 - np.array(MEAN)) / STD, -np.array(MEAN) / STD)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


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
    assert plan(9000, 9000, rule).crops + 1 == rule.most_views == 37
    assert plan(4032, 3024, rule).crops < rule.most_views
    with pytest.raises(ImageError, match=r"100000 × 32 px, which makes \d+ views of at most 37"):
        plan(100_000, 32, rule)


def test_a_sliver_too_long_to_pad_is_refused() -> None:
    assert plan(10_000, 31, RELEASED).padded == (10_000, 10_000)
    with pytest.raises(ImageError, match="65535 × 31 px; one this narrow may be 10000 px long"):
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


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert open_image(png(clear)).getpixel((0, 0)) == (255, 255, 255)
    half = Image.new("LA", (8, 8), (0, 128))
    assert open_image(png(half)).getpixel((0, 0)) == (127, 127, 127)
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    palette.info["transparency"] = 0
    assert open_image(png(palette)).getpixel((0, 0)) == (255, 255, 255)


def test_the_camera_s_rotation_is_undone() -> None:
    image = Image.new("RGB", (20, 10), "white")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert open_image(buffer.getvalue()).size == (10, 20)


def test_sixteen_bit_greys_keep_their_tones() -> None:
    grey = Image.fromarray(np.full((4, 4), 0x8080, np.uint16))
    assert open_image(png(grey)).getpixel((0, 0)) == (128, 128, 128)


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is huge and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20_000, 20_000), (10_001, 10_000), (2**31 - 1, 2**31 - 1)])
def test_a_huge_picture_is_refused_before_decoding(size: tuple[int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=r"megapixels.*scale it down"):
            open_image(bomb(*size))


def test_what_is_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("not a picture")
    with pytest.raises(ImageError, match=r"notes\.png is not a picture"):
        open_image(text)
    with pytest.raises(ImageError, match="does not exist"):
        open_image(tmp_path / "absent.jpg")
    with pytest.raises(ImageError, match="is a directory"):
        open_image(tmp_path)
    with pytest.raises(ImageError, match="not a picture"):
        open_image(b"")
    with pytest.raises(ImageError, match="not a picture"):  # PostScript would start a program
        open_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_truncated_picture_is_refused(kind: str) -> None:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, kind)
    whole = buffer.getvalue()
    assert open_image(whole).size == (64, 64)
    with pytest.raises(ImageError, match=r"damaged or truncated|not a picture"):
        open_image(whole[: len(whole) // 2])


def test_an_open_picture_does_not_keep_its_file(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("RGB", (4, 4), "red").save(file)
    image = open_image(file)
    file.unlink()
    assert image.mode == "RGB" and image.getpixel((3, 3)) == (255, 0, 0)
