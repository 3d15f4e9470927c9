"""Checkpoints of a training run, with the settings and inputs that they were trained with.

Promises that a checkpoint is either complete or absent, and that one of other settings or inputs is refused with the
names of those that differ. `check` reads no weights, so that a command can call it before it computes anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tofc.errors import UsageError

#: values that JSON can hold, by the name of an option ("--steps"), an input's file, or a setting of a recipe
Settings = Mapping[str, Any]
NONE: Settings = {}


def fingerprint(path: Path) -> str:
    """Return twelve hexadecimal digits that change with the file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def check(path: Path, settings: Settings) -> None:
    """Raise `UsageError` if there is a checkpoint that was trained with other settings."""
    if path.exists():
        _check(path, torch.load(path, weights_only=True, mmap=True, map_location="cpu"), settings)


def save(path: Path, state: dict[str, Any], settings: Settings = NONE) -> None:
    """Replace `path` atomically; `settings` are those that the training depends on, its inputs included."""
    new = path.with_suffix(".new")
    torch.save(state | {"settings": json.dumps(dict(settings))}, new)
    new.replace(path)


def save_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays as an .npz file, complete or not at all."""
    new = path.with_suffix(".new.npz")
    np.savez(new, **arrays)
    new.replace(path)


def load(path: Path, settings: Settings = NONE) -> dict[str, Any] | None:
    """Load what `save` wrote, on the CPU; None if there is no file. Raises `UsageError` if it has other settings."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")  # from whichever device it was
    _check(path, state, settings)
    return state


def differences(then: Settings, now: Settings) -> list[str]:
    """Return a phrase for each setting of `now` that has another value in `then`."""
    now = json.loads(json.dumps(dict(now)))  # as it would be read: tuples are lists
    return [f"{name} was {then.get(name)}, is {now[name]}" for name in now if then.get(name) != now[name]]


def _check(path: Path, state: dict[str, Any], settings: Settings) -> None:
    if "settings" not in state:
        differ = ["an earlier version wrote it, without its settings"]
    else:
        differ = differences(json.loads(state["settings"]), settings)
    if differ:
        raise UsageError(
            f"{path} was trained with other settings or inputs: {'; '.join(differ)}. Give the same again, name "
            f"another --run, or remove {path} to start again"
        )
