from pathlib import Path

import pytest

from lab import fake


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny checkpoint without a codec; not to be changed."""
    path = tmp_path_factory.mktemp("tiny") / "model"
    fake.write(path)
    return path
