"""Tokens: the lines of a token file, and which of them a call shows.

    TOKEN                 the one that several devices share
    TOKEN kitchen         of one device, whose name is what the server's log says

Promises that no message holds a token, and that comparing takes as long whichever token is shown. Leaves refusing to
`auth`.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.rpc.errors import UnsafeAddressError
from shared.text import read_lines, stripped

LEAST = 16  # characters; a guessable token is none
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAMES = "a letter or digit, then up to 63 letters, digits, dots, hyphens and underscores"


@dataclass(frozen=True)
class Token:
    """What a device shows, and the device's name where it has one of its own."""

    value: str = field(repr=False)
    name: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.name}".rstrip()


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Those of a file, in order. Raises UnsafeAddressError for none and for what is not one, EncodingError, OSError."""
    found: dict[str, Token] = {}
    lines = [(number, stripped(line)) for number, line in enumerate(read_lines(path), 1)]
    for number, line in [(number, line) for number, line in lines if line] or [(1, "")]:
        value, _, name = line.partition(" ")
        name = name.strip()
        if len(value) < LEAST or not all("!" <= character <= "~" for character in value):
            raise _unusable(
                f"line {number} of {path} holds {len(value)} characters; a token is one line of at least {LEAST} "
                "visible ASCII characters without spaces, for instance from: openssl rand -hex 32"
            )
        if name and not NAME.fullmatch(name):
            raise _unusable(f"line {number} of {path} names its device {name!r}; a name is {NAMES}")
        if value in found:
            raise _unusable(f"line {number} of {path} repeats a token; give each device another")
        found[value] = Token(value, name)
    return tuple(found.values())


def shown(tokens: Sequence[Token], metadata: Iterable[tuple[str, str | bytes]]) -> Token | None:
    """The token whose `Bearer TOKEN` is in a call's metadata."""
    found = None
    for key, value in metadata:
        if key == "authorization":
            given = value if isinstance(value, bytes) else value.encode()
            for token in tokens:  # all of them, whichever it is
                if hmac.compare_digest(given, f"Bearer {token.value}".encode()):
                    found = token
    return found


def _unusable(message: str) -> UnsafeAddressError:
    return UnsafeAddressError(message, reason="TOKEN_UNUSABLE")
