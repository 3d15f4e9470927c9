"""Image codecs in as few bytes as packets: the search behind the picture that `inspect` draws."""

from pathlib import Path

import pytest
from PIL import Image

from device_client import rival
from device_client.rival import within
from shared.model.image_file import compress

EXAMPLE = Path(__file__).parents[2] / "models" / "nano" / "example.jpg"


@pytest.fixture(scope="module")
def example() -> Image.Image:
    with Image.open(EXAMPLE) as image:
        return image.convert("RGB")


def test_a_file_within_its_bytes_is_the_one_that_was_measured(example: Image.Image) -> None:
    found = within(example, "webp", 200)
    assert found.fits and found.image is not None and 100 < found.size <= 200
    scale = found.image.width / example.width
    assert len(compress(example, "webp", found.quality, scale)) == found.size
    assert (
        str(found)
        == f"WebP: {found.size} bytes, {found.image.width} x {found.image.height} px, quality {found.quality}"
    )


def test_more_bytes_are_never_worse(example: Image.Image) -> None:
    few, many = (within(example, "webp", budget) for budget in (100, 400))
    assert rival._error(example, many) < rival._error(example, few)


def test_a_codec_that_cannot_says_what_it_needs(example: Image.Image) -> None:
    found = within(example, "avif", 90)
    assert not found.fits and found.size > 90
    assert str(found).startswith(f"AVIF: no fewer than {found.size} bytes")


def test_a_codec_that_is_missing_is_said(example: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rival, "missing", lambda codec: True)
    found = within(example, "avif", 90)
    assert found.image is None and str(found) == "AVIF: not in this Pillow"
