"""The version of this software; device and server exchange theirs.

Promises the version in pyproject.toml (a test compares them) without reading the installed package's metadata, which
takes longer than opening a picture. Leaves comparing model and codec to the handshake.
"""

from __future__ import annotations

VERSION = "0.1.0"


def software_version() -> str:
    """Return the version of the distribution `tofc`."""
    return VERSION
