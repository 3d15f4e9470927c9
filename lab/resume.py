"""Checkpoints of a training run: whole or not there, and never taken for those of other inputs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch


def fingerprint(path: Path) -> str:
    """Twelve hexadecimal digits that change with the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def save(path: Path, state: dict[str, Any], basis: str = "") -> None:
    """Replace ``path`` at once; ``basis`` names what the run was trained on."""
    new = path.with_suffix(".new")
    torch.save(state | {"basis": basis}, new)
    new.replace(path)


def load(path: Path, basis: str = "") -> dict[str, Any] | None:
    """What :func:`save` left, or None. Raises ``ValueError`` where the run stood on something else."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    if state["basis"] != basis:
        raise ValueError(
            f"{path} was trained on {state['basis'] or 'nothing'}, and there is {basis or 'nothing'} now: "
            "remove it to train anew, or name another --run"
        )
    return state
