"""What holds for every test: a busy machine may take its time, and how a person set up theirs does not matter."""

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
    """One that nobody listens on, and no other process gets; a server may, since both ask to share addresses."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        yield port
