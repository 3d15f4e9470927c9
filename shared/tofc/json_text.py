"""JSON that every program can read, whatever text it was made from.

Promises that NaN and Infinity are never written, that lone surrogates, terminal controls and characters that some
programs take for a line end are escaped, and that input which cannot be read is reported in one sentence. Leaves
splitting a file into lines to `text`.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from tofc.errors import UsageError
from tofc.text import MARK, check_encoding

# They occur in strings only: DEL and the C1 controls, the separators that str.splitlines cuts at, and surrogates.
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _refuse(constant: str) -> NoReturn:
    raise UsageError(f"not JSON: {constant} is not a number")


# Integers are parsed as floats, since int() refuses more than 4300 digits; fields are copied as text, so exactly.
_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_int=float)


def members(text: str) -> dict[str, tuple[Any, str]]:
    """Parse a JSON object into {name: (value, the value's text)}; of duplicate names the last one counts.

    Raises `UsageError` if the text is not JSON or not an object. Numbers become floats; their text is exact.

    >>> members('{"id": 1e400, "question": "what?"}')
    {'id': (inf, '1e400'), 'question': ('what?', '"what?"')}
    """
    try:
        if not isinstance(_DECODER.decode(text), dict):
            raise UsageError("not a JSON object, as {…}")
        return _members(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"not JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}") from None
    except RecursionError:
        raise UsageError("not JSON that can be read: it is nested too deeply") from None


def _members(text: str) -> dict[str, tuple[Any, str]]:
    """Do the work of `members` for a text that is known to be an object."""
    found: dict[str, tuple[Any, str]] = {}
    at = _next(text, text.index("{") + 1)
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        start = _next(text, _next(text, at) + 1)  # behind the colon
        value, end = _DECODER.raw_decode(text, start)
        found[name] = value, escaped(text[start:end])
        at = _next(text, end)
        if text[at] == ",":
            at = _next(text, at + 1)
    return found


def _next(text: str, at: int) -> int:
    while text[at] in " \t\n\r":
        at += 1
    return at


def escaped(text: str) -> str:
    r"""Escape what some programs would misread in a JSON text.

    >>> escaped('"\u2028"')
    '"\\u2028"'
    """
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def dumps(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """Return a value as JSON; NaN and Infinity become null.

    >>> dumps({"loss": float("nan"), "answer": "22 °C"})
    '{"loss": null, "answer": "22 °C"}'
    """
    return escaped(json.dumps(_finite(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value


def read(path: Path) -> Any:
    """Return the value in a JSON file, with or without a byte order mark. Raises `UsageError`, `OSError`."""
    data = path.read_bytes()
    check_encoding(data, path)
    try:
        return json.loads(data.decode().lstrip(MARK))
    except (ValueError, RecursionError) as error:  # of these bytes: ValueError also for an int of 4300 digits
        raise UsageError(f"{path} is not JSON ({error})") from None


def write(path: Path, value: Any) -> None:
    """Write a value so that `read` returns it; NaN and Infinity become null."""
    path.write_text(dumps(value, indent=1) + "\n", encoding="utf-8")
