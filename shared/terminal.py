"""What a person reads in a terminal, of whatever text: answers, file names, a server's words.

Promises that nothing printed can steer the terminal: control characters but line end and tab are written out, the same
at a terminal and in a pipe, and JSON is ASCII where the stream holds no more. Leaves the exact text to JSON.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from shared.json_text import dumps

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # and surrogates: bytes of names that are no text


def printable(text: str) -> str:
    r"""
    >>> printable("\x1b[2Jyes\n\x9b")
    '\\x1b[2Jyes\n\\x9b'
    """
    return _CONTROLS.sub(_written, text)


def _written(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def one_line(text: str) -> str:
    r"""
    >>> one_line("no file a\nb.png")
    'no file a\\nb.png'
    """
    return printable(text).replace("\n", "\\n")


def say(text: str = "", *, end: str = "\n") -> None:
    """To stdout, at once."""
    _print(printable(text) + end)


def say_json(value: Any) -> None:
    """One line of JSON to stdout."""
    encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "")
    _print(dumps(value, ascii_only=encoding != "utf8") + "\n")


def _print(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except OSError as error:  # a full disk, or nobody who reads
        error.filename = "stdout"
        raise


def note(text: str = "") -> None:
    """One line to stderr, at once."""
    print(one_line(text), file=sys.stderr, flush=True)
