"""Whatever a picture comes as, the same pixels are the same picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tofc import Client, ImageError
from tofc.model.open_image import image_in_memory, open_image


def as_bytes(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


@pytest.fixture
def edge() -> Client:
    """One that asks nothing."""
    return Client("127.0.0.1:1")


def test_the_same_pixels_are_the_same_picture(edge: Client, example: Path) -> None:
    pixels = open_image(example)
    array = np.asarray(pixels)
    given: list[Any] = [
        str(example),
        example,
        example.read_bytes(),
        Image.open(example),
        pixels,
        array,
        np.asfortranarray(array),
        array[:, ::-1][:, ::-1],
        as_bytes(pixels),
    ]
    ids = [edge.picture(one).id for one in given]
    assert len(ids[0]) == 32
    assert {*ids} == {ids[0]}
    assert edge.picture(array[:, ::-1]).id != ids[0]


def test_what_becomes_of_the_source_afterwards_does_not_matter(edge: Client, example: Path, tmp_path: Path) -> None:
    array = np.asarray(open_image(example)).copy()
    image = Image.fromarray(array)
    file = tmp_path / "a.png"
    image.save(file)
    opened = [edge.picture(one) for one in (array, image, file)]
    array[:] = 0
    image.paste("red", (0, 0, *image.size))
    file.unlink()
    kept = [np.asarray(one._pictures[0].image) for one in opened]
    assert all(np.array_equal(one, np.asarray(open_image(example))) for one in kept)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_pil_image_is_turned_as_its_file_is(edge: Client, turn: int) -> None:
    image = Image.linear_gradient("L").convert("RGB").resize((40, 30))
    exif = Image.Exif()
    exif[0x0112] = turn
    data = as_bytes(image, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        assert edge.picture(opened).id == edge.picture(data).id
        assert opened.getexif()[0x0112] == turn  # it is not changed


def modes() -> list[Image.Image]:
    grey = Image.linear_gradient("L")
    palette = grey.convert("P")
    palette.info["transparency"] = 7
    clear = grey.convert("RGB")
    clear.putalpha(grey)
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    return [grey, grey.convert("1"), palette, clear, grey.convert("LA"), sixteen]


@pytest.mark.parametrize("image", modes(), ids=lambda image: image.mode)
def test_colours_of_a_pil_image_are_those_of_its_file(edge: Client, image: Image.Image) -> None:
    before = image.tobytes(), dict(image.info)
    assert edge.picture(image).id == edge.picture(as_bytes(image)).id
    assert (image.tobytes(), dict(image.info)) == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "NoneType is not a picture; give a path, the bytes"),
        (7, "int is not a picture"),
        ([[1, 2]], "list is not a picture"),
        (np.zeros((4, 4), np.uint8), r"an array \[4, 4\] of uint8 is not a picture; .*\[height, width, 3\] of uint8"),
        (np.zeros((4, 4, 4), np.uint8), r"an array \[4, 4, 4\] of uint8"),
        (np.zeros((4, 4, 3), np.float32), r"an array \[4, 4, 3\] of float32"),
        (np.zeros((0, 4, 3), np.uint8), r"an array \[0, 4, 3\] of uint8"),
        (b"", "the picture is empty, not a picture"),
        (b"what?", "the picture is not a picture in a format that can be read"),
        (b"GIF89a", "the picture is"),
        ("missing.jpg", "missing.jpg does not exist"),
        (Image.new("RGB", (0, 3)), "the picture is 0 × 3 px"),
        (Image.new("L", (70_000, 1)), "at most 65535 px a side"),
    ],
    ids=str,
)
def test_what_is_not_a_picture_is_refused(edge: Client, given: Any, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        edge.picture(given)


def test_a_pil_image_of_a_damaged_or_closed_file_is_refused(edge: Client, example: Path) -> None:
    data = example.read_bytes()
    with (
        Image.open(io.BytesIO(data[: len(data) // 2])) as damaged,
        pytest.raises(ImageError, match="cannot be decoded"),
    ):
        edge.picture(damaged)
    closed = Image.open(example)
    closed.close()
    with pytest.raises(ImageError, match="cannot be decoded"):
        edge.picture(closed)


def test_too_many_pixels_are_refused() -> None:
    with pytest.raises(ImageError, match=r"the picture is 20 × 10 px, 0 megapixels; at most"):
        image_in_memory(Image.new("RGB", (20, 10)), max_pixels=100)
