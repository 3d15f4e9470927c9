"""The models that ship with TOFC, by name: beside the code in a wheel, under models/ in a checkout.

Promises that a name finds the same model in both, and that a folder which exists is taken before a model of its name.
Leaves to `checkpoint` whether a folder is complete.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = _PACKAGE.parents[1] / "models"
_FOLDER = _PACKAGE if (_PACKAGE / "nano").is_dir() else _CHECKOUT

NANO = _FOLDER / "nano"


def shipped_models() -> dict[str, Path]:
    """Return the folder of each shipped model by its name.

    >>> shipped_models()["nano"] == NANO
    True
    """
    return {file.parent.name: file.parent for file in sorted(_FOLDER.glob("*/config.json"))}


def find_model(given: Path) -> Path:
    """Return the folder of a shipped model if its name is given, otherwise the path unchanged."""
    if len(given.parts) != 1 or given.exists():
        return given
    return shipped_models().get(given.name, given)
