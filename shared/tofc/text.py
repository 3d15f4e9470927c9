"""Text files as other systems write them: byte order marks, line ends, and encodings that are not UTF-8.

Promises that a byte order mark at the start of any line is removed (concatenated files have several), that a line ends
at \\n, \\r\\n or \\r and nowhere else (JSON strings may contain U+2028 and U+0085), and that a UTF-16 or UTF-32 file
is one error instead of one for each line. Leaves the meaning of a line to its reader.
"""

from __future__ import annotations

import re
from pathlib import Path

from tofc.errors import EncodingError

MARK = "\ufeff"
_MARK = MARK.encode()
# Four ASCII characters in a row, of two or four bytes each; UTF-8 text contains no zero bytes.
_ASCII = rb"[\t\n\r -~]"
_WIDE = re.compile(rb"(?:A\0){4}|(?:\0A){4}|(?:A\0\0\0){4}".replace(b"A", _ASCII))
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
# The place in a JSON Lines file where a file without a final line end was joined to one that starts with a mark.
_SEAM = re.compile(rf"(?<=\}})[ \t]*{MARK}+(?=[ \t]*\{{)")


def check_encoding(data: bytes, name: object) -> None:
    """Raise `EncodingError` if `data` is UTF-16 or UTF-32, with or without a byte order mark.

    >>> check_encoding("a cat?".encode("utf-16"), "questions.txt")
    Traceback (most recent call last):
    tofc.errors.EncodingError: questions.txt is UTF-16 text; save it as UTF-8, for instance with: iconv -f UTF-16 ...
    """
    found = _WIDE.search(data)
    if found or data.startswith(_WIDE_MARKS):
        longer = data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")) or (found and b"\0\0\0" in found[0])
        encoding = "UTF-32" if longer else "UTF-16"
        raise EncodingError(
            f"{name} is {encoding} text; save it as UTF-8, for instance with: iconv -f {encoding} -t UTF-8"
        )


def split(data: bytes, name: object) -> list[str]:
    r"""Split a text into lines without their ends.

    Bytes that are not UTF-8 become surrogates, which `encoding_problem` reports.

    >>> split("\ufeffone\r\ntwo\u2028.\rthree".encode(), "questions.txt")
    ['one', 'two\u2028.', 'three']
    """
    check_encoding(data, name)
    text = _SEAM.sub("\n", data.decode(errors="surrogateescape")).replace("\r\n", "\n").replace("\r", "\n")
    return [line.lstrip(MARK) for line in text.removesuffix("\n").split("\n")]


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file. Raises `EncodingError`, `OSError`."""
    return split(path.read_bytes(), path)


def read_pem(path: Path) -> bytes:
    """Read a file of certificates or keys, without byte order marks: OpenSSL does not skip them."""
    data = path.read_bytes()
    check_encoding(data, path)
    return data.replace(_MARK, b"")


def stripped(text: str) -> str:
    """Strip white space and byte order marks from both ends.

    >>> stripped("\\ufeff what is this?\\r")
    'what is this?'
    """
    return text.strip().strip(MARK).strip()


def encoding_problem(text: str) -> str:
    """Say why a line from `split` is not UTF-8, or return "".

    >>> encoding_problem(split(b"caf\\xe9", "questions.txt")[0])
    'not UTF-8 text at character 4; check the encoding of its source'
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"not UTF-8 text at character {error.start + 1}; check the encoding of its source"
    return ""
