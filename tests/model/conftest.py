from __future__ import annotations

from pathlib import Path

import pytest

from tofc_lab.checkpoint import fake


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole tiny checkpoint without a codec; tests must not change it."""
    path = tmp_path_factory.mktemp("tiny") / "model"
    fake.write(path)
    return path
