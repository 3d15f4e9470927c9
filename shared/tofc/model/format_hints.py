"""Recognises the format of a file that Pillow cannot read, by its first bytes, and advises what to do with it.

Promises a hint for formats that people take for pictures, or have pictures in. Leaves decoding to `open_image`.

>>> format_hint(b"%PDF-1.7")
'is not a picture but a PDF; export the page as PNG'
>>> format_hint(b"an unknown format") is None
True
"""

from __future__ import annotations

from PIL import features

from tofc.install import pip_install

HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_RAW = "a camera's raw file; export it as JPEG"
_VIDEO = "not a picture but a video; save one frame of it as JPEG"
_SAVE = "save it as PNG or JPEG"
_DAMAGED = "damaged or truncated or of a kind that is not supported; save it again as PNG or JPEG"
#: (position, the bytes there, what the file is and what to do with it); the first that matches counts
_KINDS = (
    (0, b"%PDF", "not a picture but a PDF; export the page as PNG"),
    (0, b"%!PS", "not a picture but PostScript; export it as PNG"),
    (0, b"8BPS", "a Photoshop file; export it as PNG"),
    (0, b"v/1\x01", f"OpenEXR; {_SAVE}"),
    (0, b"#?RADIANCE", f"Radiance HDR; {_SAVE}"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", f"JPEG 2000; {_SAVE}"),
    (0, b"\xff\x4f\xff\x51", f"JPEG 2000; {_SAVE}"),
    (0, b"\0\0\1\0", f"an icon (ICO); {_SAVE}"),
    (0, b"DDS ", f"a DDS texture; {_SAVE}"),
    (0, b"qoif", f"QOI; {_SAVE}"),
    (0, b"P7\n", f"PAM; {_SAVE}"),
    (0, b"PF\n", f"PFM with colours; {_SAVE}"),
    (0, b"\x93NUMPY", f"a numpy array; {_SAVE}"),
    (0, b"SIMPLE  =", f"FITS; {_SAVE}"),
    (0, b"FUJIFILMCCD-RAW", _RAW),
    (0, b"IIRO", _RAW),
    (0, b"IIRS", _RAW),
    (0, b"MMOR", _RAW),
    (0, b"IIU\0", _RAW),
    (0, b"\x1aE\xdf\xa3", _VIDEO),
    (0, b"\0\0\1\xba", _VIDEO),
    (0, b"PK\x03\x04", "not a picture but a ZIP archive; unpack it first"),
    (0, b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (0, b"version https://git-lfs", "not a picture but a Git LFS pointer; fetch the picture with git lfs pull"),
    (4, b"ftypcrx", _RAW),
    (0, b"\xff\xd8", f"JPEG, {_DAMAGED}"),
    (0, b"\x89PNG", f"PNG, {_DAMAGED}"),
    (0, b"GIF8", f"GIF, {_DAMAGED}"),
    (0, b"BM", f"BMP, {_DAMAGED}"),
    (0, b"II*\0", f"TIFF, {_DAMAGED}"),
    (0, b"MM\0*", f"TIFF, {_DAMAGED}"),
    (0, b"II+\0", f"TIFF, {_DAMAGED}"),
    (0, b"MM\0+", f"TIFF, {_DAMAGED}"),
    (8, b"WEBP", f"WebP, {_DAMAGED}"),
    (8, b"AVI ", _VIDEO),
    (4, b"ftypavi", f"AVIF, {_DAMAGED}"),
    (4, b"ftypmif1", f"AVIF or HEIF, {_DAMAGED}"),
    (4, b"ftyp", _VIDEO),
)


def is_heif(head: bytes) -> bool:
    """Whether a file is HEIC: HEIF with pictures coded in HEVC."""
    return head[4:8] == b"ftyp" and not _brands(head).isdisjoint(HEIF_BRANDS)


def is_jxl(head: bytes) -> bool:
    """Whether a file is JPEG XL, as a bare codestream or in a container."""
    return head.startswith(_JXL)


def format_hint(head: bytes) -> str | None:
    """Return the rest of a sentence that begins with the file's name, by its first 1 kB; None for an unknown format."""
    if not head:
        return "is empty, not a picture; save it again"
    if is_heif(head):
        return f"is HEIC; install pillow-heif ({pip_install('pillow-heif')}), or save it as JPEG"
    if is_jxl(head):
        return f"is JPEG XL; install pillow-jxl-plugin ({pip_install('pillow-jxl-plugin')}), or save it as JPEG"
    if head[4:8] == b"ftyp" and not features.check("avif") and b"avif" in _brands(head):
        return f"is AVIF, which this Pillow was built without: {pip_install('--force-reinstall', 'pillow')}"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<svg", b"<?xml")) and b"<svg" in text:
        return "is SVG; export it as PNG"
    if text.startswith((b"<!doctype html", b"<html")):
        return "is not a picture but a web page; download the picture itself"
    for position, signature, hint in _KINDS:
        if head[position:].startswith(signature):
            return f"is {hint}"
    return None


def _brands(head: bytes) -> set[bytes]:
    """Return the brands in the first box, `ftyp`, of an ISO media file: the major one and the compatible ones."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[at : at + 4] for at in range(16, end, 4))}
