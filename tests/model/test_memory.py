"""Memory is proportional to the pixels: the peak of a process that opens, identifies and cuts a picture.

Each picture is measured in its own process, relative to one that does the same with a picture of 8 × 8 px. Pillow needs
4 bytes for a coloured pixel, 1 for a grey one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.model.files import turned

SIDE = 2600
MEGABYTE = 1 << 20
MEASURE = """
import sys
from pathlib import Path
from device_client.picture import open_picture
from tofc.model.image_codec import compress, decompress
from tofc.model.views import ViewRule, views

rule = ViewRule(global_size=336, crop_size=224, max_side=1344)
picture = open_picture(Path(sys.argv[1]), rule, "codec", "setting")
if sys.argv[2] == "views":
    views(picture.image, rule)
elif sys.argv[2] == "server":
    data = Path(sys.argv[1]).read_bytes()
    del picture
    views(decompress(data, "jpeg", max_pixels=25_000_000), rule)
else:
    compress(picture.image, "jpeg", 75, 0.25)
status = Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) * 1024)
"""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak memory is read from Linux's /proc"
)


def peak_bytes(picture: Path, use: str = "views") -> int:
    """Return the peak resident bytes of a process that opens a picture and makes views or a file of it."""
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, str(picture), use],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    )
    assert not found.stderr
    return int(found.stdout)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Return the peak resident bytes of the same process with a tiny picture."""
    small = tmp_path_factory.mktemp("small") / "small.png"
    Image.new("RGB", (8, 8)).save(small)
    return peak_bytes(small)


def shades() -> Image.Image:
    return Image.linear_gradient("L").resize((SIDE, SIDE))


def colours() -> Image.Image:
    return Image.merge("RGB", [shades(), shades().transpose(Image.Transpose.ROTATE_90), shades()])


def clear() -> Image.Image:
    image = colours()
    image.putalpha(shades())
    return image


#: the picture, how it is saved, and the bytes that a pixel may take
KINDS: dict[str, tuple[Callable[[], Image.Image], str, dict[str, object], int]] = {
    "grey.png": (shades, "PNG", {"compress_level": 1}, 6),
    "colours.png": (colours, "PNG", {"compress_level": 1}, 6),
    "clear.png": (clear, "PNG", {"compress_level": 1}, 10),
    "palette.gif": (lambda: colours().quantize(16), "GIF", {}, 6),
    "colours.jpg": (colours, "JPEG", {}, 6),
    "turned.jpg": (colours, "JPEG", {"exif": turned()}, 10),
    "inverted.jpg": (lambda: colours().convert("CMYK"), "JPEG", {}, 10),
    "colours.bmp": (colours, "BMP", {}, 6),
    "colours.ppm": (colours, "PPM", {}, 6),
    "packed.tif": (colours, "TIFF", {"compression": "tiff_lzw"}, 7),
    "colours.avif": (colours, "AVIF", {"speed": 10, "quality": 50}, 10),
    "colours.webp": (colours, "WEBP", {"method": 0}, 14),  # its decoder holds two pictures
    "sixteen.png": (
        lambda: Image.fromarray(np.asarray(shades()).astype(np.uint16) << 8), "PNG", {"compress_level": 1}, 8,
    ),
    "float.tif": (lambda: Image.fromarray(np.asarray(shades()).astype(np.float32) / 255), "TIFF", {}, 10),
}  # fmt: skip
#: for the views, and for a few stripes of pixels in numbers of 8 bytes
SET_ASIDE = 40 * MEGABYTE


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_takes_a_few_bytes_a_pixel(name: str, tmp_path: Path, baseline: int) -> None:
    make, kind, settings, bytes_each = KINDS[name]
    make().save(tmp_path / name, kind, **settings)
    assert peak_bytes(tmp_path / name) - baseline <= bytes_each * SIDE * SIDE + SET_ASIDE


@pytest.mark.parametrize("size", [(20, 9990), (9990, 20)])
def test_a_narrow_picture_takes_the_memory_of_its_views(size: tuple[int, int], tmp_path: Path, baseline: int) -> None:
    Image.new("RGB", size, "orange").save(tmp_path / "narrow.png")
    assert peak_bytes(tmp_path / "narrow.png") - baseline <= SET_ASIDE


def test_encoding_or_decoding_it_takes_no_second_copy(tmp_path: Path, baseline: int) -> None:
    colours().save(tmp_path / "colours.jpg")
    assert peak_bytes(tmp_path / "colours.jpg", "file") - baseline <= 6 * SIDE * SIDE + SET_ASIDE
    assert peak_bytes(tmp_path / "colours.jpg", "server") - baseline <= 6 * SIDE * SIDE + SET_ASIDE
