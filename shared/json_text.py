"""JSON that every program can read, whatever was read from elsewhere.

Promises that no NaN and no Infinity is written, that half a surrogate pair and what others take for a line end or a
terminal's control are escaped, and that what cannot be read is said in one sentence. Leaves files of lines to `text`.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from shared.text import MARK, check_encoding

# Within strings only: delete and the second set of controls, what str.splitlines cuts at, and surrogates.
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"not JSON: {constant} is not a number")


# Whole numbers as floats: int() refuses more than 4300 digits. What is copied is copied as text.
_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_int=float)


def members(text: str) -> dict[str, tuple[Any, str]]:
    """A JSON object → {name: (value, the value as it was written)}; of a name that is there twice, the last.

    Raises ``ValueError``: "not JSON: …", or that it is no object. Numbers are floats; as written they are exact.

    >>> members('{"id": 1e400, "question": "what?"}')
    {'id': (inf, '1e400'), 'question': ('what?', '"what?"')}
    """
    try:
        if not isinstance(_DECODER.decode(text), dict):
            raise ValueError("not a JSON object, as {…}")
        return _members(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}") from None
    except RecursionError:
        raise ValueError("not JSON that can be read: it is nested too deeply") from None


def _members(text: str) -> dict[str, tuple[Any, str]]:
    """Of a text that is known to be an object."""
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
    r"""JSON with everything escaped that some programs read otherwise.

    >>> escaped('"\u2028"')
    '"\\u2028"'
    """
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def dumps(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """A value as JSON; what is no number becomes null.

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
    """What a JSON file holds, whatever its encoding mark. Raises ``ValueError`` naming the file, ``OSError``."""
    data = path.read_bytes()
    check_encoding(data, path)
    try:
        return json.loads(data.decode().lstrip(MARK))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from None


def write(path: Path, value: Any) -> None:
    """A file that `read` gives back, but for what is no number."""
    path.write_text(dumps(value, indent=1) + "\n", encoding="utf-8")
