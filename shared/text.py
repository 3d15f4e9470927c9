"""Text as other systems write it: byte order marks, line ends, and encodings that are not UTF-8.

Promises that a mark at the start of a line is no part of it (files are concatenated with their marks), that a line
ends at \\n, \\r\\n or \\r and nowhere else (U+2028 and U+0085 may be within JSON), and that UTF-16 and UTF-32 are
named once instead of failing line by line. Leaves what a line means to its reader.
"""

from __future__ import annotations

import re
from pathlib import Path

MARK = "\ufeff"
_MARK = MARK.encode()
# Four characters of ASCII as they are written in two or four bytes each; UTF-8 text has no zeros.
_ASCII = rb"[\t\n\r -~]"
_WIDE = re.compile(rb"(?:A\0){4}|(?:\0A){4}|(?:A\0\0\0){4}".replace(b"A", _ASCII))
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
# Where a file without a last line end was followed by one with a mark, in JSON lines.
_SEAM = re.compile(rf"(?<=\}})[ \t]*{MARK}+(?=[ \t]*\{{)")


class EncodingError(ValueError):
    """Text that is not UTF-8 at all."""


def check_encoding(data: bytes, name: object) -> None:
    """Raises ``EncodingError`` where ``data`` is UTF-16 or UTF-32, with its mark or without.

    >>> check_encoding("a cat?".encode("utf-16"), "questions.txt")
    Traceback (most recent call last):
    shared.text.EncodingError: questions.txt is UTF-16 text; save it as UTF-8, for instance with: iconv -f UTF-16 ...
    """
    found = _WIDE.search(data)
    if found or data.startswith(_WIDE_MARKS):
        longer = data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")) or (found and b"\0\0\0" in found[0])
        encoding = "UTF-32" if longer else "UTF-16"
        raise EncodingError(
            f"{name} is {encoding} text; save it as UTF-8, for instance with: iconv -f {encoding} -t UTF-8"
        )


def split(data: bytes, name: object) -> list[str]:
    r"""The lines of a text without their ends. Bytes that are not UTF-8 become surrogates: `problem` finds them.

    >>> split("\ufeffone\r\ntwo\u2028.\rthree".encode(), "questions.txt")
    ['one', 'two\u2028.', 'three']
    """
    check_encoding(data, name)
    text = _SEAM.sub("\n", data.decode(errors="surrogateescape")).replace("\r\n", "\n").replace("\r", "\n")
    return [line.lstrip(MARK) for line in text.removesuffix("\n").split("\n")]


def read_lines(path: Path) -> list[str]:
    """The lines of a file. Raises ``EncodingError``, ``OSError``."""
    return split(path.read_bytes(), path)


def read_pem(path: Path) -> bytes:
    """A file of certificates or keys without byte order marks, which OpenSSL does not read over."""
    data = path.read_bytes()
    check_encoding(data, path)
    return data.replace(_MARK, b"")


def stripped(text: str) -> str:
    """Without white space and byte order marks around it.

    >>> stripped("\\ufeff what is this?\\r")
    'what is this?'
    """
    return text.strip().strip(MARK).strip()


def problem(text: str) -> str:
    """Why a text read by `split` is not UTF-8, or nothing.

    >>> problem(split(b"caf\\xe9", "questions.txt")[0])
    'not UTF-8 text at character 4; check the encoding of its source'
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"not UTF-8 text at character {error.start + 1}; check the encoding of its source"
    return ""
