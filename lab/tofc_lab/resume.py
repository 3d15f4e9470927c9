"""Checkpoints of a training run.

Promises that a checkpoint is either complete or absent, and that one that was trained on other inputs is refused.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from tofc.errors import UsageError


def fingerprint(path: Path) -> str:
    """Return twelve hexadecimal digits that change with the file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def save(path: Path, state: dict[str, Any], basis: str = "") -> None:
    """Replace `path` atomically; `basis` identifies the inputs that the run is trained on."""
    new = path.with_suffix(".new")
    torch.save(state | {"basis": basis}, new)
    new.replace(path)


def load(path: Path, basis: str = "") -> dict[str, Any] | None:
    """Load what `save` wrote; None if there is no file. Raises `UsageError` if its `basis` is another one."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    if state["basis"] != basis:
        raise UsageError(
            f"{path} was trained on other inputs ({state['basis'] or 'not recorded'}, here {basis or 'not recorded'}); "
            "remove it to start again, or name another --run"
        )
    return state
