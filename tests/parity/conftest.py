"""Tests that need torchvision, which `make test` installs into a folder outside the environment.

No program needs it, and everything else is tested without it. These tests run separately, because transformers looks
for torchvision only once in a process.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tofc_lab.checkpoint import fake
from tofc_lab.verify.step3p7 import import_torchvision

collect_ignore = [] if import_torchvision() else ["test_processors.py"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "model"
    fake.write(path)
    return path
