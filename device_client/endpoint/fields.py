"""Fields of a JSON object, read by type.

Promises an error that names the path of a field of a wrong type, what it takes and what it got; null is like an absent
field. Fields that nobody reads are ignored, because every client sends some of its own. Leaves meanings to `request`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from device_client.endpoint.errors import ApiError, invalid

SHOWN = 60  # characters of a value in a message


class Fields:
    """An object of a request; `path` is where it is, empty for the whole body."""

    def __init__(self, value: object, path: str = "") -> None:
        """Raise ApiError if `value` is not an object."""
        if not isinstance(value, Mapping):
            raise wrong(path or "the body", "an object", value)
        self._value: Mapping[str, Any] = value
        self._path = path

    def path(self, name: str) -> str:
        """Return the path of a field."""
        return f"{self._path}.{name}" if self._path else name

    def has(self, name: str) -> bool:
        """Return whether a field is there and not null."""
        return self._value.get(name) is not None

    def raw(self, name: str) -> Any:
        """Return a field's value, whatever it is; None if it is absent."""
        return self._value.get(name)

    def text(self, name: str) -> str | None:
        """Return a text. Raises ApiError for another type."""
        value = self.raw(name)
        if value is not None and not isinstance(value, str):
            raise wrong(self.path(name), "a string", value)
        return None if value is None else checked_text(self.path(name), value)

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false. Raises ApiError for another type."""
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise wrong(self.path(name), "true or false", value)
        return value

    def number(self, name: str) -> float | None:
        """Return a finite number. Raises ApiError for another type."""
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong(self.path(name), "a number", value)
        try:
            found = float(value)
        except OverflowError:  # of a whole number
            found = math.inf
        if not math.isfinite(found):
            raise wrong(self.path(name), "a number", value)
        return found

    def whole(self, name: str) -> int | None:
        """Return a whole number, also of a float such as 5.0. Raises ApiError for another value."""
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**64:
            raise wrong(self.path(name), "a whole number", value)
        return value

    def array(self, name: str) -> Sequence[Any]:
        """Return a list; an absent one is empty. Raises ApiError for another type."""
        value = self.raw(name)
        if value is not None and not isinstance(value, list):
            raise wrong(self.path(name), "an array", value)
        return value or []

    def object(self, name: str) -> Fields:
        """Return the fields of an object; an absent one has none. Raises ApiError for another type."""
        value = self.raw(name)
        return Fields({} if value is None else value, self.path(name))


def checked_text(path: str, value: str) -> str:
    """Return a text. Raises ApiError for half of a surrogate pair, which JSON can hold and UTF-8 cannot."""
    try:
        if not value.isascii():  # known without a look at a large data URL
            value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start]
        raise invalid(
            path, f"{path} has {half!r} at {error.start}, which is no character; send valid Unicode"
        ) from None
    return value


def wrong(path: str, expected: str, value: object) -> ApiError:
    """Return the error for a value of a wrong type."""
    shown = f"{value!r:.{SHOWN}}" if isinstance(value, (str, int, float, bool)) else _kind(value)
    return invalid(path, f"{path} must be {expected}, got {shown}", code="invalid_type")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", type(None): "null"}
    return names.get(type(value), type(value).__name__)
