"""Bit depths: every encoding of the same tones gives the same picture, and ambiguous files get an error."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from tests.model.files import chunk, drawn, png, saved, tiff
from tofc.errors import ImageError
from tofc.model.open_image import open_image

OLD_PILLOW = int(PIL.__version__.partition(".")[0]) < 13
SIZE = (64, 6)
#: 0 to 252: black at the left, nearly white at the right
TONES = np.tile(np.arange(64) * 4, (6, 1))
SPREAD = TONES / 255


def grey(values: NDArray[np.generic], bits: int, **settings: int | str) -> bytes:
    order = str(settings.get("order", "<"))
    return tiff(SIZE, values.astype(values.dtype.newbyteorder(order)).tobytes(), bits, **settings)  # type: ignore[arg-type]


def read_by_libtiff(order: str) -> dict[str, bytes]:
    """Make compressed TIFFs of the same tones: libtiff reads them, and swaps bytes itself."""

    def made(values: NDArray[np.generic], bits: int, **settings: int) -> bytes:
        data = values.astype(values.dtype.newbyteorder(order)).tobytes()
        return tiff(SIZE, data, bits, order=order, packed=True, **settings)

    three = np.repeat(TONES[..., None], 3, -1)
    return {
        f"packed {order} 16 bits": made((TONES * 257).astype("u2"), 16),
        f"packed {order} 16 bits with a sign": made((SPREAD * 32_767).round().astype("i2"), 16, kind=2),
        f"packed {order} 8 bits in 32": made(TONES.astype("i4"), 32, kind=2),
        f"packed {order} float": made(SPREAD.astype("f4"), 32, kind=3),
        f"packed {order} colours of 16 bits": made((three * 257).astype("u2"), 16, photometric=2, samples=3),
        f"packed {order} colours of 8 bits in 16": made(three.astype("u2"), 16, photometric=2, samples=3),
    }


def colours(values: NDArray[np.generic], bits: int, order: str = "<") -> bytes:
    data = np.repeat(values[..., None], 3, -1)
    return tiff(
        SIZE, data.astype(data.dtype.newbyteorder(order)).tobytes(), bits, photometric=2, samples=3, order=order
    )


def pack_twelve_bits(values: NDArray[np.generic]) -> bytes:
    """Pack two numbers into three bytes."""
    pairs = values.reshape(-1, 2).astype(int)
    return (
        np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1]], -1)
        .astype(np.uint8)
        .tobytes()
    )


def netpbm(head: str, values: NDArray[np.generic]) -> bytes:
    return f"{head}\n{SIZE[0]} {SIZE[1]}\n".encode() + values.tobytes()


def pfm(values: NDArray[np.generic]) -> bytes:
    return b"Pf\n64 6\n-1.0\n" + values[::-1].astype("<f4").tobytes()


def packed(bits: int) -> list[bytes]:
    """Pack rows of a PNG: the highest `bits` of each tone."""
    every = np.unpackbits(TONES.astype(np.uint8)[..., None], axis=-1)[..., :bits]
    return [np.packbits(row).tobytes() for row in every.reshape(6, -1)]


def rows(values: NDArray[np.generic], kind: str) -> Iterable[bytes]:
    return [row.tobytes() for row in values.astype(kind)]


ALIKE = {
    "8 bits": grey(TONES.astype("u1"), 8),
    "8 bits, white is 0": grey((255 - TONES).astype("u1"), 8, photometric=0),
    "16 bits": grey((TONES * 257).astype("u2"), 16),
    "16 bits, other order": grey((TONES * 257).astype("u2"), 16, order=">"),
    "16 bits, white is 0": grey((65_535 - TONES * 257).astype("u2"), 16, photometric=0),
    "16 bits with a sign": grey((SPREAD * 32_767).round().astype("i2"), 16, kind=2),
    "16 bits with a sign, other order": grey((SPREAD * 32_767).round().astype("i2"), 16, kind=2, order=">"),
    "8 bits in 16": grey(TONES.astype("u2"), 16),
    "8 bits in 16 with a sign": grey(TONES.astype("i2"), 16, kind=2),
    "12 bits": tiff(SIZE, pack_twelve_bits((SPREAD * 4095).round()), 12),
    "10 bits in 16": grey((SPREAD * 1023).round().astype("u2"), 16),
    "12 bits in 16": grey((SPREAD * 4095).round().astype("u2"), 16),
    "14 bits in 16": grey((SPREAD * 16_383).round().astype("u2"), 16),
    "8 bits in 32": grey(TONES.astype("u4"), 32),
    "8 bits in 32 with a sign": grey(TONES.astype("i4"), 32, kind=2),
    "8 bits in 32 with a sign, other order": grey(TONES.astype("i4"), 32, kind=2, order=">"),
    "12 bits in 32": grey((SPREAD * 4095).round().astype("i4"), 32, kind=2),
    "10 bits in 32": grey((SPREAD * 1023).round().astype("i4"), 32, kind=2),
    "14 bits in 32": grey((SPREAD * 16_383).round().astype("u4"), 32),
    "16 bits in 32": grey((TONES * 257).astype("i4"), 32, kind=2),
    "32 bits": grey((SPREAD * (2**32 - 1)).astype("u4"), 32),
    "32 bits with a sign": grey((SPREAD * (2**31 - 1)).astype("i4"), 32, kind=2),
    "float": grey(SPREAD.astype("f4"), 32, kind=3),
    "float, other order": grey(SPREAD.astype("f4"), 32, kind=3, order=">"),
    "float, white is 0": grey((1 - SPREAD).astype("f4"), 32, kind=3, photometric=0),
    "float of 8 bits": grey(TONES.astype("f4"), 32, kind=3),
    "float of 16 bits": grey((TONES * 257).astype("f4"), 32, kind=3),
    "colours of 16 bits": colours((TONES * 257).astype("u2"), 16),
    "colours of 10 bits in 16": colours((SPREAD * 1023).round().astype("u2"), 16),
    "colours of 14 bits in 16": colours((SPREAD * 16_383).round().astype("u2"), 16),
    "colours of 12 bits in 16": colours((SPREAD * 4095).round().astype("u2"), 16),
    "colours of 12 bits in 16, other order": colours((SPREAD * 4095).round().astype("u2"), 16, ">"),
    "colours of 8 bits in 16": colours(TONES.astype("u2"), 16),
    "png 8": png(rows(TONES, "u1"), SIZE, 8, 0),
    "png 16": png(rows(TONES * 257, ">u2"), SIZE, 16, 0),
    "png 8 bits in 16": png(rows(TONES, ">u2"), SIZE, 16, 0),
    "png 16 with alpha": png(rows(np.stack([TONES * 257, TONES * 0 + 65_535], -1), ">u2"), SIZE, 16, 4),
    "png 12 bits in 16 with alpha": png(
        rows(np.stack([(SPREAD * 4095).round(), TONES * 0 + 65_535], -1), ">u2"), SIZE, 16, 4
    ),
    "png with alpha of 8 bits in 16": png(rows(np.stack([TONES, TONES * 0 + 255], -1), ">u2"), SIZE, 16, 4),
    "png colours and alpha of 8 bits in 16": png(
        rows(np.stack([TONES] * 3 + [TONES * 0 + 255], -1), ">u2"), SIZE, 16, 6
    ),
    "png colours of 16": png(rows(np.repeat(TONES[..., None] * 257, 3, -1), ">u2"), SIZE, 16, 2),
    "png colours of 12 bits in 16": png(rows(np.repeat((SPREAD * 4095).round()[..., None], 3, -1), ">u2"), SIZE, 16, 2),
    "png colours and alpha of 12 bits in 16": png(
        rows(np.stack([(SPREAD * 4095).round()] * 3 + [TONES * 0 + 65_535], -1), ">u2"), SIZE, 16, 6
    ),
    "png colours and alpha of 16": png(
        rows(np.stack([TONES * 257] * 3 + [TONES * 0 + 65_535], -1), ">u2"), SIZE, 16, 6
    ),
    "pgm 255": netpbm("P5\n#255", TONES.astype("u1")).replace(b"64 6\n", b"64 6\n255\n"),
    "pgm 4095": netpbm("P5", (SPREAD * 4095).round().astype(">u2")).replace(b"64 6\n", b"64 6\n4095\n"),
    "pgm 65535": netpbm("P5", (TONES * 257).astype(">u2")).replace(b"64 6\n", b"64 6\n65535\n"),
    "pgm 12 bits in 16": netpbm("P5", (SPREAD * 4095).round().astype(">u2")).replace(b"64 6\n", b"64 6\n65535\n"),
    **{
        f"ppm {white} under {most}": netpbm(
            "P6", np.repeat((SPREAD * white).round()[..., None], 3, -1).astype(">u2" if most > 255 else "u1")
        ).replace(b"64 6\n", f"64 6\n{most}\n".encode())
        for white, most in ((255, 255), (65_535, 65_535), (4095, 4095), (255, 65_535), (1023, 65_535), (255, 4095))
    },
    "pfm": pfm(SPREAD),
    "pfm of 8 bits": pfm(TONES),
    **read_by_libtiff("<"),
    **read_by_libtiff(">"),
}  # fmt: skip


@pytest.mark.parametrize("name", ALIKE)
def test_every_depth_shows_the_same_tones(name: str) -> None:
    found = np.asarray(open_image(ALIKE[name]), int)
    assert np.abs(found - TONES[..., None]).max() <= 1


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_span_black_to_white(bits: int) -> None:
    wanted = (TONES >> 8 - bits) * 255 // (2**bits - 1)
    for data in (png(packed(bits), SIZE, bits, 0), tiff(SIZE, b"".join(packed(bits)), bits)):
        assert np.array_equal(np.asarray(open_image(data))[..., 0], wanted)
    inverted = tiff(SIZE, b"".join(packed(bits)), bits, photometric=0)
    assert np.array_equal(np.asarray(open_image(inverted))[..., 0], 255 - wanted)


@pytest.mark.parametrize(
    ("data", "clear"),
    [
        *[(png(packed(bits), SIZE, bits, 0, chunk(b"tRNS", struct.pack(">H", 1))), bits) for bits in (1, 2, 4, 8)],
        (png(rows(TONES * 257, ">u2"), SIZE, 16, 0, chunk(b"tRNS", struct.pack(">H", 4 * 257))), 16),
        (png(rows(TONES, ">u2"), SIZE, 16, 0, chunk(b"tRNS", struct.pack(">H", 4))), 16),
        (png(rows(np.repeat(TONES[..., None], 3, -1), "u1"), SIZE, 8, 2, chunk(b"tRNS", bytes([0, 4] * 3))), 16),
        (
            png(
                rows(np.repeat(TONES[..., None] * 257, 3, -1), ">u2"),
                SIZE, 16, 2, chunk(b"tRNS", struct.pack(">HHH", *[4 * 257] * 3)),
            ),
            16,
        ),
    ],
)  # fmt: skip
def test_a_transparent_tone_is_white_at_every_depth(data: bytes, clear: int) -> None:
    found = np.asarray(open_image(data), int)[..., 0]
    gone = (TONES >> 8 - clear == 1) if clear < 16 else (TONES == 4)
    kept = TONES if clear >= 8 else (TONES >> 8 - clear) * 255 // (2**clear - 1)
    assert np.abs(found - np.where(gone, 255, kept)).max() <= 1
    assert gone.any() or clear == 8


def test_tones_that_differ_in_their_low_byte_alone_are_not_transparent() -> None:
    values = np.repeat((TONES * 0 + 0x8000)[..., None], 3, -1)
    values[:, :32] += 1
    data = png(rows(values, ">u2"), SIZE, 16, 2, chunk(b"tRNS", struct.pack(">HHH", *[0x8001] * 3)))
    found = np.asarray(open_image(data))
    assert (found[:, :32] == 255).all() and (found[:, 32:] == 128).all()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (grey((TONES - 100).astype("i2"), 16, kind=2), "numbers from -100 to 152"),
        (grey((TONES - 100).astype("i4"), 32, kind=2), "numbers from -100 to 152"),
        (grey((4095 - TONES * 16).astype("u2"), 16, photometric=0), "numbers from 63 to 4095"),
        (grey((255 - TONES).astype("u2"), 16, photometric=0), "numbers from 3 to 255"),
        (grey((TONES - 128).astype("i1"), 8, kind=2), "numbers from -128 to 124"),
        (grey((SPREAD * 10**6).astype("i4"), 32, kind=2), "numbers from 0 to 988235"),
        (grey((SPREAD * 10**6).astype("u4"), 32), "numbers from 0 to 988235"),
        (grey((TONES * 20).astype("i4"), 32, kind=2), "numbers from 0 to 5040"),
        (grey((TONES * 20).astype("f4"), 32, kind=3), "numbers from 0 to 5040"),
        (grey((TONES * 2).astype("i4"), 32, kind=2), "numbers from 0 to 504"),
        (grey((SPREAD * 20 + 0.1).astype("f4"), 32, kind=3), "numbers from 0.1 to 19.8"),
        (grey((SPREAD - 0.5).astype("f4"), 32, kind=3), "numbers from -0.5 to 0.48"),
        (pfm(SPREAD * 1e30), r"numbers from 0 to 9\."),
        (pfm(SPREAD * 0.01), r"numbers from 0 to 0\.0098"),
        (grey((SPREAD * 4095).astype("u2"), 16, photometric=0), "numbers from 0 to 4046"),
        (grey((65_535 - SPREAD * 4095).astype("u2"), 16, photometric=0), "numbers from 61488 to 65535"),
        (grey(TONES.astype("f4"), 32, kind=3, photometric=0), "numbers from 0 to 252"),
        (b"P3 2 1 65535 0 0 0 255 255 255", "numbers far below the white that its header names"),
        (
            tiff(SIZE, (TONES * 257).astype("u2").tobytes() * 3, 16, photometric=2, samples=3, more=[(284, "H", [2])]),
            "planes",
        ),
        (grey((SPREAD * np.nan).astype("f4"), 32, kind=3), "only NaN and infinity"),
    ],
)
def test_numbers_without_a_known_white_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=rf"the picture (holds|has) .*{said}.*save it with 8 bits a colour"):
        open_image(data)


def test_nan_is_black_and_infinity_white() -> None:
    values = SPREAD.astype("f4")
    values[0, :3] = np.nan, np.inf, -np.inf
    values[1, :2] = -0.05, 1.05  # as resizing may produce
    found = np.asarray(open_image(grey(values, 32, kind=3)), int)[..., 0]
    assert found[0, :3].tolist() == [0, 255, 0] and found[1, :2].tolist() == [0, 255]
    assert np.abs(found - TONES)[2:].max() <= 1


def test_black_stays_black_and_dark_stays_dark() -> None:
    for data in (grey(np.zeros((6, 64), "u2"), 16), grey(np.zeros((6, 64), "f4"), 32, kind=3), pfm(SPREAD * 0)):
        assert open_image(data).getextrema() == ((0, 0),) * 3
    assert open_image(grey((TONES // 4).astype("u1"), 8)).getextrema() == ((0, 63),) * 3
    assert open_image(grey((TONES * 80).astype("u2"), 16)).getextrema() == ((0, 78),) * 3
    assert open_image(grey(np.full((6, 64), 65_535, "u2"), 16, photometric=0)).getextrema() == ((0, 0),) * 3
    assert open_image(grey(np.zeros((6, 64), "u2"), 16, photometric=0)).getextrema() == ((255, 255),) * 3


def test_sixteen_bit_greys_keep_their_tones() -> None:
    values = Image.fromarray(np.full((4, 4), 0x8080, np.uint16))
    assert open_image(saved(values, "PNG")).getpixel((0, 0)) == (128, 128, 128)


def test_other_colour_spaces_give_the_same_picture() -> None:
    picture = drawn()
    lab = ImageCms.profileToProfile(
        picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    for data in (
        saved(picture.convert("CMYK"), "TIFF"),
        saved(picture.convert("CMYK"), "JPEG", quality=100),  # inverted, as Adobe does
        saved(picture, "TIFF", compression="jpeg", quality=95),
    ):
        apart = np.abs(np.asarray(open_image(data), int) - np.asarray(picture))
        assert apart.mean() < 4, data[:4]
    # An old Pillow reads its own YCbCr as truncated.
    for other in (lab, picture.convert("YCbCr"))[: 1 if OLD_PILLOW else 2]:
        assert np.abs(np.asarray(open_image(saved(other, "TIFF")), int) - np.asarray(picture)).mean() < 4


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert open_image(saved(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    half = Image.new("LA", (8, 8), (0, 128))
    assert open_image(saved(half, "PNG")).getpixel((0, 0)) == (127, 127, 127)
    for kind in ("TIFF", "WEBP"):
        assert open_image(saved(clear, kind)).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    palette.info["transparency"] = 0
    for kind in ("PNG", "GIF"):
        assert open_image(saved(palette, kind)).getpixel((0, 0)) == (255, 255, 255)
    palette.info["transparency"] = bytes([127])
    assert open_image(saved(palette, "PNG")).getpixel((0, 0)) == (133, 138, 143)
    premultiplied = tiff((1, 1), bytes([0, 64, 0, 128]), 8, photometric=2, samples=4, more=[(338, "H", [1])])
    assert open_image(premultiplied).getpixel((0, 0)) == (127, 191, 127)
    grey_of_it = tiff((1, 1), bytes([64, 128]), 8, samples=2, more=[(338, "H", [1])])
    if not OLD_PILLOW:  # an old Pillow refuses it as not supported
        assert open_image(grey_of_it).getpixel((0, 0)) == (191, 191, 191)


def test_stripes_make_no_difference() -> None:
    picture = drawn((1500, 1100))
    alpha = Image.linear_gradient("L").resize(picture.size)
    clear = picture.copy()
    clear.putalpha(alpha)
    wanted = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), clear).convert("RGB")
    assert open_image(saved(clear, "PNG", compress_level=1)) == wanted
    deep = np.arange(1500 * 1100, dtype=np.float64).reshape(1100, 1500) / (1500 * 1100)
    found = np.asarray(
        open_image(saved(Image.fromarray((deep * 65_535).astype(np.uint16)), "PNG", compress_level=1)), int
    )
    assert np.abs(found[..., 0] - deep * 255).max() <= 1


def test_an_unused_alpha_byte_hides_nothing() -> None:
    masks = struct.pack("<5I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000, 0x73524742)
    head = struct.pack("<IiiHHIIiiII", 108, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0) + masks + bytes(108 - 60)
    for alpha, wanted in ((0, (30, 20, 10)), (255, (30, 20, 10))):
        data = b"BM" + struct.pack("<IHHI", 14 + 108 + 8, 0, 0, 14 + 108) + head + bytes([10, 20, 30, alpha] * 2)
        assert open_image(data).getpixel((1, 0)) == wanted
