"""Reading pictures: which files are accepted, which are refused with which message, and that nothing is printed."""

from __future__ import annotations

import os
import struct
import sys
import types
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from tests.model.files import chunk, drawn, header, riff, saved, segment, tiff, turned, with_chunks
from tofc.errors import ImageError
from tofc.model import open_image as opening
from tofc.model.image_codec import missing
from tofc.model.open_image import open_image

PICTURE = drawn()
PNG, JPEG, WEBP, AVIF = (saved(PICTURE, kind) for kind in ("PNG", "JPEG", "WEBP", "AVIF"))
LOSSY = WEBP[20:]
ITEM = struct.pack("<I", 0x08)[:1] + bytes(3) + struct.pack("<I", 95)[:3] + struct.pack("<I", 63)[:3]  # EXIF, 96 × 64
GARBAGE = bytes(range(64))
LONG = zlib.compress(b"text " * 500_000)


def jpeg(*segments: bytes) -> bytes:
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


def xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


UNREADABLE = {
    "png long zTXt": with_chunks(PNG, chunk(b"zTXt", b"notes\0\0" + LONG)),
    "png long zTXt after": with_chunks(PNG, after=chunk(b"zTXt", b"notes\0\0" + LONG)),
    "png long iTXt": with_chunks(PNG, chunk(b"iTXt", b"notes\0\1\0en\0\0" + LONG)),
    "png long XMP": with_chunks(PNG, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG)),
    "png long EXIF text": with_chunks(PNG, chunk(b"zTXt", b"Raw profile type exif\0\0" + LONG)),
    "png invalid text": with_chunks(PNG, chunk(b"zTXt", b"notes\0\0" + GARBAGE), chunk(b"iTXt", b"")),
    "png invalid XMP": with_chunks(PNG, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + GARBAGE)),
    "png invalid EXIF text": with_chunks(PNG, chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  99\nzz")),
    "png much text": with_chunks(PNG, *[chunk(b"zTXt", b"notes\0\0" + zlib.compress(b"t" * 1_000_000)) * 70] * 2),
    "png long profile": with_chunks(PNG, chunk(b"iCCP", b"name\0\0" + LONG)),
    "png invalid profile": with_chunks(PNG, chunk(b"iCCP", b"name\0\7" + GARBAGE)),
    "png profile after": with_chunks(PNG, after=chunk(b"iCCP", b"name\0\0" + LONG)),
    "png EXIF": with_chunks(PNG, chunk(b"eXIf", GARBAGE)),
    "png EXIF after": with_chunks(PNG, after=chunk(b"eXIf", GARBAGE)),
    "png CRC": with_chunks(PNG, chunk(b"tEXt", b"a\0b", crc=1) + chunk(b"gAMA", bytes(4), crc=1)),
    "png CRC after": with_chunks(PNG, after=chunk(b"tIME", b"", crc=2)),
    "png short chunks": with_chunks(PNG, b"".join(chunk(kind, b"") for kind in (b"pHYs", b"cHRM", b"gAMA", b"sRGB"))),
    "png animation": with_chunks(PNG, chunk(b"acTL", b"\0") + chunk(b"fcTL", b"\0"), chunk(b"fdAT", b"")),
    "png transparency": with_chunks(PNG, chunk(b"tRNS", b"\0")),
    "png CRC of transparency": with_chunks(PNG, chunk(b"tRNS", bytes(6), crc=1)),
    "png CRC of a palette beside colours": with_chunks(PNG, chunk(b"PLTE", bytes(30), crc=1)),
    "png CRC of EXIF": with_chunks(PNG, chunk(b"eXIf", turned().tobytes()[6:], crc=3)),
    "png cut in its text": with_chunks(PNG, after=chunk(b"tEXt", b"a\0" + GARBAGE))[:-40],
    "png without its end": PNG[:-12],
    "png without its last CRC": PNG[:-16],
    "png trailing bytes": PNG + GARBAGE,
    "jpeg EXIF": jpeg(segment(0xE1, b"Exif\0\0" + GARBAGE)),
    "jpeg EXIF cut": jpeg(segment(0xE1, turned().tobytes()[:20])),
    "jpeg profile": jpeg(segment(0xE2, b"ICC_PROFILE\0\1\1" + GARBAGE), segment(0xE2, b"ICC_PROFILE\0")),
    "jpeg profile of many parts": jpeg(segment(0xE2, b"ICC_PROFILE\0\7\2" + GARBAGE)),
    "jpeg pictures": jpeg(segment(0xE2, b"MPF\0" + GARBAGE)),
    "jpeg Photoshop": jpeg(segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4" + GARBAGE)),
    "jpeg XMP": jpeg(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + GARBAGE)),
    "jpeg JFIF": JPEG[:2] + segment(0xE0, b"JFIF\0") + JPEG[2:],
    "jpeg empty segments": jpeg(segment(0xE1, b""), segment(0xEE, b""), segment(0xFE, b"")),
    "jpeg bytes between segments": jpeg(segment(0xFE, b"words"), GARBAGE),
    "jpeg a length of nothing": jpeg(b"\xff\xe3\0\0"),
    "jpeg trailing bytes": JPEG + GARBAGE,
    "webp EXIF": riff((b"VP8X", ITEM), (b"VP8 ", LOSSY), (b"EXIF", GARBAGE)),
    "webp EXIF cut": riff((b"VP8X", ITEM), (b"VP8 ", LOSSY), (b"EXIF", GARBAGE))[:-20],
    "webp EXIF and no pixels' room": riff((b"VP8X", ITEM), (b"VP8 ", LOSSY), (b"EXIF", b"")) + b"EXI",
    "webp profile": riff((b"VP8X", b"\x20" + ITEM[1:]), (b"ICCP", GARBAGE), (b"VP8 ", LOSSY)),
    "webp XMP": riff((b"VP8X", b"\x04" + ITEM[1:]), (b"VP8 ", LOSSY), (b"XMP ", GARBAGE)),
    "webp what it promises is missing": riff((b"VP8X", b"\x2c" + ITEM[1:]), (b"VP8 ", LOSSY)),
    "webp trailing bytes": WEBP + GARBAGE,
    "avif EXIF": saved(PICTURE, "AVIF", exif=turned(1)).replace(turned(1).tobytes()[6:], b"\7" * 26),
    "avif XMP": saved(PICTURE, "AVIF", xmp=GARBAGE),
    "avif profile": saved(PICTURE, "AVIF", icc_profile=GARBAGE),
    "avif trailing bytes": AVIF + GARBAGE,
    "tiff profile": saved(PICTURE, "TIFF", icc_profile=GARBAGE),
    "tiff tags beyond the file": tiff(PICTURE.size, PICTURE.tobytes(), 8, photometric=2, samples=3).replace(
        struct.pack("<HHI", 278, 4, 1), struct.pack("<HHI", 34_675, 4, 10**6)
    ),
}  # fmt: skip
PLAIN = {"png": PNG, "jpeg": JPEG, "webp": WEBP, "avif": AVIF, "tiff": PNG}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_metadata_is_ignored(
    name: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = open_image(UNREADABLE[name])
    assert found == open_image(PLAIN[name.partition(" ")[0]])
    assert not warned and not caplog.records and capfd.readouterr() == ("", "")
    assert not found.info


@pytest.mark.parametrize(
    "data",
    [
        saved(PICTURE, "PNG", exif=turned()),
        with_chunks(PNG, after=chunk(b"eXIf", turned().tobytes()[6:])),
        with_chunks(PNG, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6))),
        with_chunks(PNG, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp(6)))),
        with_chunks(PNG, chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 99\n" + turned().tobytes().hex().encode())),
        with_chunks(PNG, chunk(b"zTXt", b"notes\0\0" + LONG) + chunk(b"eXIf", turned().tobytes()[6:])),
        saved(PICTURE, "WEBP", exif=turned(), lossless=True),
        saved(PICTURE, "WEBP", xmp=xmp(6), lossless=True),
        saved(PICTURE, "WEBP", exif=turned(), icc_profile=GARBAGE, lossless=True),
        saved(PICTURE, "TIFF", exif=turned()),
        saved(PICTURE, "JPEG", exif=turned(), icc_profile=GARBAGE, quality=100),
        jpeg(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(6))),
        jpeg(segment(0xE2, b"MPF\0" + GARBAGE), segment(0xE1, turned().tobytes())),
        saved(PICTURE, "AVIF", exif=turned(), quality=100),
    ],
)
def test_the_orientation_is_read_wherever_it_is_stored(data: bytes) -> None:
    upright = PICTURE.transpose(Image.Transpose.ROTATE_270)
    apart = np.abs(np.asarray(open_image(data), np.float64) - np.asarray(upright))
    assert apart.shape == (96, 64, 3) and apart.mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone(orientation: int) -> None:
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    turns = opening._UPRIGHT
    lying = PICTURE if orientation == 1 else PICTURE.transpose(turns[back])
    assert open_image(saved(lying, "PNG", exif=turned(orientation))) == PICTURE


@pytest.mark.parametrize("size", [(20_000, 20_000), (10_001, 10_000), (2**31 - 1, 2**31 - 1)])
def test_a_huge_picture_is_refused_before_decoding(size: tuple[int, int]) -> None:
    bomb = header(size, 8, 2) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match=r"megapixels.*scale it down"):
        open_image(bomb)


@pytest.mark.parametrize("size", [(1, 90_000_000), (90_000_000, 1), (65_536, 100)])
def test_a_very_long_side_is_refused_before_decoding(size: tuple[int, int]) -> None:
    bomb = header(size, 1, 0) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match=rf"{size[0]} × {size[1]} px; at most 65535 px a side.*scale it down"):
        open_image(bomb)


def test_damaged_pixels_are_an_error() -> None:
    for broken in (
        PNG.replace(PNG[37:41], b"\0\0\0\1", 1),
        PNG[: len(PNG) // 2],
        PNG[:-30],
        header((96, 64), 8, 2) + chunk(b"IEND", b""),
    ):
        with pytest.raises(ImageError, match="damaged or truncated"):
            open_image(broken)


def test_libtiff_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "group4"):
        image = PICTURE.convert("1") if compression == "group4" else PICTURE
        data = bytearray(saved(image, "TIFF", compression=compression))
        data[20:60] = b"\x7a" * 40
        try:
            open_image(bytes(data))
        except ImageError as error:
            assert "damaged or truncated" in str(error)
    assert capfd.readouterr() == ("", "")
    os.write(2, b"still open")
    assert capfd.readouterr().err == "still open"


def ftyp(*brands: bytes) -> bytes:
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands)
    return struct.pack(">I", len(body) + 4) + body + bytes(200)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            ftyp(b"heic", b"mif1"),
            r"is HEIC; install pillow-heif \(/.* -m pip install pillow-heif\), or save it as JPEG",
        ),
        (ftyp(b"mif1", b"heic", b"hevc"), "is HEIC"),
        (b"\xff\x0a" + GARBAGE, r"is JPEG XL; install pillow-jxl-plugin"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + GARBAGE, "is JPEG XL"),
        (ftyp(b"avif", b"mif1"), "is AVIF, damaged or truncated"),
        (ftyp(b"isom", b"mp42"), "is not a picture but a video; save one frame"),
        (ftyp(b"qt  "), "video"),
        (ftyp(b"crx "), "camera's raw file"),
        (b"RIFF\0\1\0\0AVI LIST", "video"),
        (b"\x1aE\xdf\xa3" + GARBAGE, "video"),
        (b"%PDF-1.7\n", "is not a picture but a PDF; export the page as PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "is not a picture but PostScript"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "is SVG; export it as PNG"),
        (b"<!DOCTYPE html><html>", "web page; download the picture itself"),
        (b"FUJIFILMCCD-RAW 0201", "camera's raw file"),
        (b"8BPS\0\1", "Photoshop"),
        (b"PF\n2 2\n-1.0\n" + bytes(48), "PFM with colours"),
        (b"PK\x03\x04", "ZIP archive"),
        (b"", "is empty, not a picture"),
        (b"not a picture", "is not a picture in a format that can be read; use JPEG, PNG or WebP"),
        (PNG[:20], "is PNG, damaged or truncated"),
        (tiff((8, 8), bytes(512), 64, kind=3), "is TIFF, damaged or truncated or of a kind that is not supported"),
        (tiff((8, 8), bytes(64), 8, more=[(254, "I", [1])]), "begins with a small preview instead of the picture"),
    ],
)
def test_a_format_that_cannot_be_read_is_named_with_advice(
    data: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("pillow_heif", "pi_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImageError, match=f"^the picture {said}|^the picture .*{said}"):
        open_image(data)


def test_what_is_not_a_picture_is_refused_by_name(tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("not a picture")
    with pytest.raises(ImageError, match=r"notes\.png is not a picture"):
        open_image(text)
    with pytest.raises(ImageError, match="does not exist"):
        open_image(tmp_path / "absent.jpg")
    with pytest.raises(ImageError, match="is a directory"):
        open_image(tmp_path)
    with pytest.raises(ImageError, match="is not a file"):
        open_image(Path("/dev/null"))
    with pytest.raises(ImageError, match="could not be read"):
        open_image(tmp_path / ("long" * 100))
    with pytest.raises(ImageError, match="could not be read"):
        open_image("a\0b")


class Heif(ImageFile.ImageFile):
    """A stand-in for the plugin of pillow-heif: 96 × 64 px of one colour, unless the file says otherwise."""

    format = "HEIF"

    def _open(self) -> None:
        assert self.fp is not None
        if b"broken" in self.fp.read():
            raise SyntaxError("broken")
        self._size, self._mode = (96, 64), "RGB"
        self.info["exif"] = turned().tobytes()
        self.tile = []
        self.im = Image.core.fill("RGB", self.size, (1, 2, 3))


@pytest.mark.parametrize("library", ["pillow_heif", "pi_heif"])
def test_heic_is_read_if_a_library_is_installed(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    plugin: Any = types.ModuleType(library)
    plugin.register_heif_opener = lambda: Image.register_open("HEIF", Heif)
    for name in ("pillow_heif", "pi_heif"):
        monkeypatch.setitem(sys.modules, name, plugin if name == library else None)
    found = open_image(ftyp(b"heic"))
    assert (found.size, found.getpixel((0, 0))) == ((64, 96), (1, 2, 3))
    with pytest.raises(ImageError, match="96 × 64 px"):
        open_image(ftyp(b"heic"), max_pixels=100)
    with pytest.raises(ImageError, match="the picture is damaged or truncated; save it again"):
        open_image(ftyp(b"heic") + b"broken")


@pytest.mark.skipif(missing("jxl"), reason="no jxl in this Pillow")
def test_jpeg_xl_is_read_if_its_plugin_is_installed() -> None:
    bare = saved(PICTURE, "JXL", lossless=True)
    assert bare[:2] == b"\xff\x0a" and open_image(bare) == PICTURE
    boxed = saved(PICTURE, "JXL", lossless=True, exif=turned().tobytes(), use_container=True)
    for data in (bare, boxed):
        with pytest.raises(ImageError, match="96 × 64 px"):
            open_image(data, max_pixels=96 * 64 - 1)
        with pytest.raises(ImageError, match="damaged or truncated"):
            open_image(data[: len(data) // 2])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "PPM"])
def test_a_truncated_picture_is_refused(kind: str) -> None:
    rng = np.random.default_rng(0)
    whole = saved(Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)), kind)
    assert open_image(whole).size == (64, 64)
    for length in (len(whole) // 2, len(whole) * 9 // 10):
        with pytest.raises(ImageError, match=r"damaged or truncated|not a picture"):
            open_image(whole[:length])


def test_an_open_picture_does_not_keep_its_file(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("RGB", (4, 4), "red").save(file)
    image = open_image(file)
    file.unlink()
    assert image.mode == "RGB" and image.getpixel((3, 3)) == (255, 0, 0) and type(image) is Image.Image


def test_a_file_that_is_written_to_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, other = tmp_path / "latest.png", tmp_path / "next.png"
    PICTURE.save(file)
    read = opening._read

    def meanwhile(change: Any) -> Any:
        def reading(*given: Any) -> Any:
            found = read(*given)
            change()
            return found

        return reading

    monkeypatch.setattr(opening, "_read", meanwhile(lambda: file.write_bytes(PNG + b"more")))
    with pytest.raises(ImageError, match=r"latest\.png was written to while it was read; ask again"):
        open_image(file)
    Image.new("RGB", (4, 4)).save(other)
    monkeypatch.setattr(opening, "_read", meanwhile(lambda: other.rename(file)))
    assert open_image(file) == PICTURE, "the pixels must be those of one file, never a mix"
    monkeypatch.undo()
    assert open_image(file.read_bytes()).size == (4, 4)


def test_a_lack_of_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", full)
    with pytest.raises(ImageError, match="needs more memory than is free; scale it down first"):
        open_image(PNG)


def test_text_that_pillow_wrote_is_ignored() -> None:
    info = PngInfo()
    info.add_text("comment", "at home")
    info.add_itxt("XML:com.adobe.xmp", "<x/>", zip=True)
    assert open_image(saved(PICTURE, "PNG", pnginfo=info)) == PICTURE


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = {"save_all": True, "append_images": [PICTURE.rotate(180)], "duration": 10}
    for kind, settings in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("AVIF", {"quality": 100})):
        data = saved(PICTURE, kind, **frames, **settings)
        still = saved(PICTURE, kind, **settings)
        apart = np.abs(np.asarray(open_image(data), np.float64) - np.asarray(open_image(still)))
        assert apart.mean() < 3, kind
    assert open_image(saved(PICTURE, "WEBP", **frames, lossless=True)[:-60]) == PICTURE, "later frames may be cut off"
