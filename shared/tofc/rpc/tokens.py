"""Tokens: the lines of a token file, and which of them a call carries.

    TOKEN                 a token that several devices share
    TOKEN kitchen         the token of one device, with the name that the server's log shows

Promises that no message contains a token, and that comparing takes the same time for every token. Leaves refusing calls
to `auth`.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tofc.errors import SecurityError
from tofc.text import read_lines, stripped

MIN_LENGTH = 16  # characters, so that a token cannot be guessed
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAMES = "a letter or digit, then up to 63 letters, digits, dots, hyphens and underscores"


@dataclass(frozen=True)
class Token:
    """A token and, if it belongs to one device, the device's name."""

    value: str = field(repr=False)
    """The secret."""
    name: str = ""
    """Name of the device; empty: shared by several."""

    def __str__(self) -> str:
        return f"{self.value} {self.name}".rstrip()


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Read the tokens of a file, in order.

    Raises `SecurityError` for a file without tokens or with a bad one, `EncodingError`, OSError.
    """
    found: dict[str, Token] = {}
    lines = [(number, stripped(line)) for number, line in enumerate(read_lines(path), 1)]
    for number, line in [(number, line) for number, line in lines if line] or [(1, "")]:
        value, _, name = line.partition(" ")
        name = name.strip()
        if len(value) < MIN_LENGTH or not all("!" <= character <= "~" for character in value):
            raise _unusable(
                f"line {number} of {path} holds {len(value)} characters; a token is one line of at least {MIN_LENGTH} "
                "visible ASCII characters without spaces, for instance from: openssl rand -hex 32"
            )
        if name and not NAME.fullmatch(name):
            raise _unusable(f"line {number} of {path} names its device {name!r}; a name must be {NAMES}")
        if value in found:
            raise _unusable(f"line {number} of {path} repeats a token; give each device its own")
        found[value] = Token(value, name)
    return tuple(found.values())


def find_token(tokens: Sequence[Token], metadata: Iterable[tuple[str, str | bytes]]) -> Token | None:
    """Return the token whose `Bearer TOKEN` is in a call's metadata; None if there is none."""
    found = None
    for key, value in metadata:
        if key == "authorization":
            given = value if isinstance(value, bytes) else value.encode()
            for token in tokens:  # compare with all of them, so that the time reveals nothing
                if hmac.compare_digest(given, f"Bearer {token.value}".encode()):
                    found = token
    return found


def _unusable(message: str) -> SecurityError:
    return SecurityError(message, reason="TOKEN_UNUSABLE")
