"""Pictures that lack their end: accepted if every pixel is there, else refused."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.model.files import SIGNATURE, chunk, drawn, png, saved, tiff, turned
from tofc.errors import ImageError
from tofc.model.open_image import open_image

PALETTE = chunk(b"PLTE", bytes(range(0, 240, 5)))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 61, 3), np.uint8))
FLAT = Image.new("RGB", (64, 48), "red")
WAYS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "fine": {"quality": 95, "subsampling": "4:4:4"},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "many restarts": {"restart_marker_blocks": 1},
    "progressive restarts": {"progressive": True, "restart_marker_blocks": 3},
    "grey": {"mode": "L"},
    "four colours": {"mode": "CMYK"},
}


def jpeg(image: Image.Image, way: str) -> bytes:
    settings = dict(WAYS[way])
    return saved(image.convert(settings.pop("mode", "RGB")), "JPEG", **settings)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("image", [drawn((105, 75)), NOISE, FLAT], ids=["drawn", "noise", "flat"])
def test_a_jpeg_without_its_end_marker_is_accepted(image: Image.Image, way: str) -> None:
    data = jpeg(image, way)
    assert data[-2:] == b"\xff\xd9"
    wanted = open_image(data)
    assert open_image(data[:-2]) == wanted == open_image(data[:-1])
    assert open_image(data[:-2] + b"\xff" * 100) == wanted, "as erased memory is"


@pytest.mark.parametrize("way", WAYS)
def test_a_jpeg_that_lacks_pixels_is_refused(way: str) -> None:
    for image in (drawn((105, 75)), NOISE):
        data = jpeg(image, way)
        begin = data.index(b"\xff\xda") + 14
        for end in (*range(len(data) - 12, len(data) - 3), *range(begin, len(data) - 3, (len(data) - begin) // 20)):
            with pytest.raises(ImageError, match="damaged or truncated"):
                open_image(data[:end])


def test_a_progressive_jpeg_that_ends_between_its_scans_is_refused() -> None:
    data = jpeg(NOISE, "progressive")
    at = data.index(b"\xff\xda")
    scans = 0
    while (at := data.find(b"\xff\xda", at + 2)) > 0:
        tables = data.rindex(b"\xff\xc4", 0, at)
        for end in (at, tables):
            with pytest.raises(ImageError, match="damaged or truncated"):
                open_image(data[:end])
        scans += 1
    assert scans > 5


@pytest.mark.parametrize("way", [way for way in WAYS if "progressive" not in way])
def test_a_jpeg_whose_lower_part_was_filled_with_grey_is_refused(way: str) -> None:
    for image in (drawn((105, 75)), NOISE):
        data = jpeg(image, way)
        begin = data.index(b"\xff\xda") + 14
        for share in (1, 3, 6, 8):
            with pytest.raises(ImageError, match="damaged or truncated"):
                open_image(data[: begin + (len(data) - begin) * share // 10] + b"\xff\xd9")


@pytest.mark.parametrize("way", WAYS)
def test_a_flat_lower_part_alone_is_accepted(way: str) -> None:
    half = drawn((105, 75))
    half.paste((128, 128, 128), (0, 40, 105, 75))
    for image in (FLAT, half, Image.new("RGB", (1, 1))):
        data = jpeg(image, way)
        assert open_image(data).size == image.size
        assert open_image(data + b"\xff\xd8 more " * 30).size == image.size


def interlaced(colour: int, samples: int, passes: int) -> bytes:
    """Make a black PNG of 16 × 16 px, grey or coloured, with only some of its interlacing passes."""
    head = struct.pack(">IIBBBBB", 16, 16, 8, colour, 0, 0, 1)
    sizes = ((2, 2), (2, 2), (4, 2), (4, 4), (8, 4), (8, 8), (16, 8))[:passes]
    pixels = b"".join(bytes(1 + width * samples) * height for width, height in sizes)
    return SIGNATURE + chunk(b"IHDR", head) + PALETTE + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def test_a_preview_within_the_metadata_is_ignored() -> None:
    exif = turned(1).tobytes() + saved(drawn((16, 16)), "JPEG")
    large = Image.effect_noise((700, 500), 90).convert("RGB")  # of many bytes that look like markers
    large.paste((0, 0, 0), (0, 250, 700, 500))
    for image in (FLAT, large):
        for settings in ({}, {"progressive": True}, {"restart_marker_rows": 1}):
            data = saved(image, "JPEG", exif=exif, **settings)
            wanted = open_image(data)
            assert wanted.size == image.size and open_image(data[:-2]) == wanted
            assert open_image(data + data) == wanted


@pytest.mark.parametrize(("colour", "samples"), [(0, 1), (2, 3), (3, 1), (4, 2), (6, 4)])
def test_a_png_whose_stream_ends_early_is_refused(colour: int, samples: int) -> None:
    row = b"\7" * 16 * samples
    assert open_image(png([row] * 16, (16, 16), 8, colour, PALETTE)).size == (16, 16)
    assert open_image(interlaced(colour, samples, 7)).size == (16, 16)
    for short in (png([row] * 9, (16, 16), 8, colour, PALETTE), *(interlaced(colour, samples, n) for n in (1, 3, 6))):
        with pytest.raises(ImageError, match="damaged or truncated"):
            open_image(short)


def test_a_tiff_that_lists_too_few_strips_is_refused() -> None:
    pixels = bytes([200]) * 8 * 8
    whole = tiff((8, 8), pixels, 8)
    assert open_image(whole).getextrema() == ((200, 200),) * 3
    rows = struct.pack("<HHI", 278, 4, 1)  # in a strip
    assert rows in whole
    with pytest.raises(ImageError, match=r"damaged or truncated \(some pixels are missing\)"):
        open_image(whole.replace(rows + struct.pack("<I", 8), rows + struct.pack("<I", 4)))


def test_a_black_png_is_accepted() -> None:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        for size in ((1, 1), (7, 5), (40, 30)):
            assert open_image(saved(Image.new(mode, size), "PNG")).size == size
    for depth in (2, 4, 16):
        assert open_image(png([bytes(2 * depth)] * 16, (16, 16), depth, 0)).getextrema() == ((0, 0),) * 3
