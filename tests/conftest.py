"""Settings of all tests: no deadlines, because a machine may be busy, and none of the user's environment variables."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

_SETTINGS = ("TOFC_DEVICE_", "TOFC_SERVER_", "TOFC_MODEL")  # not TOFC_ARM, which is the tests' own
for name in [name for name in os.environ if name.startswith(_SETTINGS) or name.lower().endswith("_proxy")]:
    del os.environ[name]


@pytest.fixture
def free_port() -> Iterator[int]:
    """Hold a port that nobody listens on. No other process gets it, but a server may listen: both set SO_REUSEADDR."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        yield port
