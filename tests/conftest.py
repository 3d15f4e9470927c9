"""What holds for every test: a busy machine may take its time, and how a person set up theirs does not matter."""

import os
import socket

import pytest
from hypothesis import settings

settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

for name in [name for name in os.environ if name.startswith("TOFC_") or name.lower().endswith("_proxy")]:
    del os.environ[name]


@pytest.fixture
def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        port: int = tried.getsockname()[1]
        return port
