"""What several tests of the lab need."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from tofc.model.checkpoint import Checkpoint


def through(items: Iterable[Any], *_: Any) -> Iterable[Any]:
    """Show no progress."""
    return items


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny checkpoint with random weights."""
    from tofc_lab.checkpoint import fake

    path = tmp_path_factory.mktemp("model")
    fake.write(path, seed=2)
    return Checkpoint.open(path)
