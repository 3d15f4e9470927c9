"""What needs torchvision, which `make test` puts beside the environment and not into it.

Nothing that runs needs it, and everything else is tested without. These tests are a run of their own: transformers
looks for torchvision once.
"""

from pathlib import Path

import pytest

from lab import fake
from lab.step3p7 import import_torchvision

collect_ignore = [] if import_torchvision() else ["test_processors.py"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "model"
    fake.write(path)
    return path
