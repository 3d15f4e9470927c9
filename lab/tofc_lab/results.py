"""Measurements in JSON, as `tofc-lab` and the benchmarks write them.

Promises a `UsageError` for any other file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tofc import json_text
from tofc.errors import UsageError


def read(file: Path, key: str) -> Any:
    """Return the value of `key` in a file of measurements. Raises `UsageError` if it has none."""
    found = json_text.read(file)
    if not isinstance(found, dict) or key not in found:
        raise UsageError(f"{file} must be a file of measurements with {key!r}, has {_outline(found)}")
    return found[key]


def _outline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(map(repr, list(value)[:5])) or "nothing"
    return f"a {type(value).__name__}"
