"""Printing for people: answers, file names and messages of a server, whatever they contain.

Promises that nothing printed can control the terminal: control characters other than line end and tab are shown as
escapes, also in a pipe, and JSON is ASCII if the stream is not UTF-8. Leaves the exact text to JSON.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from tofc.json_text import dumps

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # and surrogates: bytes of file names


def printable(text: str) -> str:
    r"""Replace control characters by visible escapes.

    >>> printable("\x1b[2Jyes\n\x9b")
    '\\x1b[2Jyes\n\\x9b'
    """
    return _CONTROLS.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def one_line(text: str) -> str:
    r"""Make a text printable on one line.

    >>> one_line("no file a\nb.png")
    'no file a\\nb.png'
    """
    return printable(text).replace("\n", "\\n")


def say(text: str = "", *, end: str = "\n") -> None:
    """Print to stdout and flush."""
    _print(printable(text) + end)


def say_json(value: Any) -> None:
    """Print a value as one line of JSON to stdout and flush."""
    encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "")
    _print(dumps(value, ascii_only=encoding != "utf8") + "\n")


def _print(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except OSError as error:  # a full disk, or a reader that has gone
        error.filename = "stdout"
        raise


def note(text: str = "") -> None:
    """Print one line to stderr and flush."""
    print(one_line(text), file=sys.stderr, flush=True)


def note_dim(text: str) -> None:
    """Print a part of a text to stderr, dim on a terminal, and flush."""
    dim, plain = ("\x1b[2m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    print(f"{dim}{printable(text)}{plain}", end="", file=sys.stderr, flush=True)
