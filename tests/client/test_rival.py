"""Image codecs at the size of packets: the search for the pictures that `inspect` draws beside its map."""

from __future__ import annotations

import pytest
from PIL import Image

from device_client import rival
from device_client.rival import best_within_budget
from tofc.model.image_codec import compress
from tofc.model.shipped import NANO

EXAMPLE = NANO / "example.jpg"


@pytest.fixture(scope="module")
def example() -> Image.Image:
    with Image.open(EXAMPLE) as image:
        return image.convert("RGB")


def test_a_file_within_its_bytes_is_the_one_that_was_measured(example: Image.Image) -> None:
    found = best_within_budget(example, "webp", 200)
    assert found.fits and found.image is not None and 100 < found.size_bytes <= 200
    scale = found.image.width / example.width
    assert len(compress(example, "webp", found.quality, scale)) == found.size_bytes
    assert (
        str(found)
        == f"WebP: {found.size_bytes} bytes, {found.image.width} x {found.image.height} px, quality {found.quality}"
    )


def test_more_bytes_are_never_worse(example: Image.Image) -> None:
    few, many = (best_within_budget(example, "webp", budget) for budget in (100, 400))
    assert rival._error(example, many) < rival._error(example, few)


def test_a_codec_that_needs_more_says_how_much(example: Image.Image) -> None:
    found = best_within_budget(example, "avif", 90)
    assert not found.fits and found.size_bytes > 90
    assert str(found).startswith(f"AVIF: no fewer than {found.size_bytes} bytes")


def test_a_missing_codec_is_reported(example: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rival, "missing", lambda codec: True)
    found = best_within_budget(example, "avif", 90)
    assert found.image is None and str(found) == "AVIF: not in this Pillow"
