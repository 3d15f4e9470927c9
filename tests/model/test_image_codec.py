"""Pictures as files of four codecs: sizes read without a decoder, and untrusted files."""

from __future__ import annotations

import contextlib
import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tofc.errors import ImageCodecError
from tofc.model import image_codec
from tofc.model.image_codec import CODECS, compress, decompress, missing, scaled_size
from tofc.model.image_headers import JPEG_SCANS, HeaderError, _av1, size_of
from tofc.model.shipped import NANO

SIZES = ((1, 1), (8, 8), (17, 300), (300, 17), (256, 192), (192, 256), (128, 64), (120, 100), (513, 90))
SIGN = NANO / "example.jpg"
EVERY = [
    pytest.param(codec, marks=pytest.mark.skipif(missing(codec), reason=f"no {codec} in this Pillow"))
    for codec in CODECS
]


def drawn(size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Make smooth colours with an edge, as in photos."""
    down, across = np.mgrid[0 : size[1], 0 : size[0]]
    pixels = np.stack([across * 255 // size[0], down * 255 // size[1], 255 * (across > size[0] // 2)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("codec", EVERY)
def test_decoding_gives_nearly_the_picture_that_was_encoded(codec: str) -> None:
    picture = drawn()
    few, many = compress(picture, codec, 10), compress(picture, codec, 90)
    assert len(few) < len(many)
    errors = [
        np.abs(np.asarray(decompress(data, codec, max_pixels=160 * 120), np.float64) - np.asarray(picture)).mean()
        for data in (few, many)
    ]
    assert errors[1] < errors[0] < 20 and errors[1] < 4
    assert compress(picture, codec, 10) == few
    assert decompress(compress(picture, codec, 100), codec, max_pixels=160 * 120).mode == "RGB"


@pytest.mark.parametrize("codec", EVERY)
def test_sizes_are_read_without_a_decoder(codec: str) -> None:
    for size in SIZES:
        for quality in (1, 60):
            data = compress(drawn(size), codec, quality)
            assert size_of(data, codec) == size
            assert decompress(data, codec, max_pixels=size[0] * size[1]).size == size


@pytest.mark.parametrize("codec", EVERY)
def test_scale(codec: str) -> None:
    data = compress(drawn((301, 7)), codec, 50, 0.1)
    assert size_of(data, codec) == scaled_size((301, 7), 0.1) == (30, 1)


@pytest.mark.parametrize("codec", EVERY)
def test_metadata_is_not_encoded(codec: str) -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x010E] = "taken at home"
    exif[0x0112] = 6
    drawn().save(buffer, "JPEG", exif=exif, comment=b"taken at home", icc_profile=b"taken at home" * 20)
    with Image.open(buffer) as opened:
        data = compress(opened, codec, 50)
    assert b"taken at home" not in data and b"Exif" not in data
    assert decompress(data, codec, max_pixels=10**6).size == (160, 120)


@pytest.mark.parametrize("codec", EVERY)
def test_a_large_picture_is_refused_by_its_header(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = compress(drawn(), codec, 50)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a decoder was given the file")

    monkeypatch.setattr(Image, "open", never)
    with pytest.raises(ImageCodecError, match="160 × 120 px, but only 19199 px are allowed") as refused:
        decompress(data, codec, max_pixels=160 * 120 - 1)
    assert refused.value.reason == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize("codec", EVERY)
def test_truncated_and_damaged_files_end_in_one_error(codec: str) -> None:
    data = compress(drawn(), codec, 50)
    for length in (*range(0, min(len(data), 400), 7), len(data) // 2, len(data) * 3 // 4, len(data) - 8):
        with pytest.raises(ImageCodecError) as refused:
            decompress(data[:length], codec, max_pixels=10**5)
        assert refused.value.reason in ("IMAGE_INVALID", "IMAGE_TOO_LARGE")
    rng = np.random.default_rng(1)
    for _ in range(60):  # a flipped bit may still decode, to a picture of the size that was checked
        broken = bytearray(data)
        broken[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        with contextlib.suppress(ImageCodecError, HeaderError):
            assert size_of(bytes(broken), codec) == decompress(bytes(broken), codec, max_pixels=10**5).size


@pytest.mark.parametrize("codec", EVERY)
def test_only_the_announced_format_is_decoded(codec: str) -> None:
    for other in CODECS:
        if other != codec and not missing(other):
            with pytest.raises(ImageCodecError) as refused:
                decompress(compress(drawn(), other, 50), codec, max_pixels=10**6)
            assert refused.value.reason == "IMAGE_INVALID"


def test_a_file_of_many_frames_is_refused_before_any_is_decoded() -> None:
    avif = compress(drawn(), "avif", 50)
    frames = avif[avif.index(b"mdat") + 4 :]
    assert _av1(frames, 0, len(frames)) == (160, 120)
    last = frames
    while last[0] >> 3 != 6:  # headers, of less than 128 bytes
        last = last[2 + last[1] :]
    with pytest.raises(HeaderError, match="more than one AV1 frame"):
        _av1(frames + last, 0, len(frames + last))
    if not missing("jxl"):
        jxl = int.from_bytes(compress(drawn(), "jxl", 50), "little")
        size = (jxl.bit_length() + 7) // 8
        said = set()
        for bit in range(100):  # one of these bits marks the last frame
            try:
                size_of((jxl ^ 1 << bit).to_bytes(size, "little"), "jxl")
            except HeaderError as error:
                said.add(str(error))
        assert "it has more than one JPEG XL frame" in said


def test_jpeg_xl_keeps_to_one_frame_where_its_encoder_would_make_more() -> None:
    if missing("jxl"):
        pytest.skip("pillow-jxl-plugin is not installed")
    page = Image.new("RGB", (400, 300), "white")
    for y in range(0, 300, 12):
        ImageDraw.Draw(page).text((5, y), "the same words again and again " * 3, fill="black")
    assert size_of(compress(page, "jxl", 20), "jxl") == page.size


def test_a_wrong_size_in_a_header_is_refused() -> None:
    webp = bytearray(compress(drawn(), "webp", 50))
    webp[26:30] = struct.pack("<HH", 16_383, 16_383)
    with pytest.raises(ImageCodecError, match="16383 × 16383"):
        decompress(bytes(webp), "webp", max_pixels=10**6)
    avif = compress(drawn(), "avif", 50)
    at = avif.index(b"ispe") + 8
    lie = avif[:at] + struct.pack(">II", 16_000, 16_000) + avif[at + 8 :]
    assert size_of(lie, "avif") == (160, 120)  # the coded picture's own size counts
    with pytest.raises(ImageCodecError) as refused:
        decompress(lie, "avif", max_pixels=10**6)
    assert refused.value.reason == "IMAGE_INVALID"


def test_small_files_that_are_expensive_to_decode_are_refused() -> None:
    frames = [drawn(), drawn().rotate(180)]
    for codec, kind in (("webp", "WEBP"), ("avif", "AVIF")):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=10)
        with pytest.raises(HeaderError):
            size_of(buffer.getvalue(), codec)
    jpeg = compress(drawn(), "jpeg", 50)
    end = jpeg.index(b"\xff\xda")
    with pytest.raises(HeaderError, match=f"at most {JPEG_SCANS}"):
        size_of(jpeg[:end] + jpeg[end:] * (JPEG_SCANS + 1), "jpeg")


@pytest.mark.parametrize(
    ("codec", "quality", "scale", "said"),
    [
        ("gif", 50, 1.0, "codec must be one of jpeg, webp, avif, jxl, got 'gif'"),
        ("jpeg", 0, 1.0, r"quality must be 1 \(smallest\) to 100 \(best\), got 0"),
        ("jpeg", 101, 1.0, r"quality must be 1 \(smallest\) to 100 \(best\), got 101"),
        ("jpeg", 50, 0.0, "scale must be more than 0 and at most 1, got 0"),
        ("jpeg", 50, 1.01, "scale must be more than 0 and at most 1, got 1.01"),
        ("jpeg", 50, float("nan"), "scale must be more than 0 and at most 1, got nan"),
    ],
)
def test_settings_that_are_not_allowed_are_refused(codec: str, quality: int, scale: float, said: str) -> None:
    with pytest.raises(ImageCodecError, match=said):
        compress(drawn(), codec, quality, scale)


def test_a_side_too_long_for_a_codec_is_refused() -> None:
    with pytest.raises(ImageCodecError, match="webp holds at most 16383 px a side"):
        compress(Image.new("RGB", (16_384, 1)), "webp", 50)


def test_a_missing_codec_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_jxl", None)
    assert missing("jxl") and not missing("jpeg")
    with pytest.raises(ImageCodecError, match="pip install pillow-jxl-plugin") as refused:
        compress(drawn(), "jxl", 50)
    assert refused.value.reason == "CODEC_MISSING"
    monkeypatch.setattr(image_codec.features, "check", lambda _: False)
    with pytest.raises(ImageCodecError, match="without avif"):
        compress(drawn(), "avif", 50)


@pytest.mark.parametrize("codec", EVERY)
def test_a_real_picture_gets_smaller(codec: str) -> None:
    with Image.open(SIGN) as opened:
        sizes = [len(compress(opened, codec, 40, scale)) for scale in (1.0, 0.5)]
        assert sizes[1] < sizes[0] < opened.width * opened.height * 3 / 20
