"""The path of nano, the model that ships with TOFC: beside the code in a wheel, under models/ in a checkout.

Promises the same name, `NANO`, for both. Leaves to `checkpoint` whether the folder is complete.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "nano"
_CHECKOUT = _PACKAGE.parents[1] / "models" / "nano"

NANO = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
