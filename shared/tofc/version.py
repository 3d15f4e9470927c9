"""The version of the installed distribution; device and server exchange theirs.

Promises nothing about compatibility: versions are for people. Leaves comparing model and codec to the handshake.
"""

from __future__ import annotations

from importlib import metadata


def software_version() -> str:
    """Return the version of the distribution `tofc`, or 'unreleased' in a source tree that is not installed."""
    try:
        return metadata.version("tofc")
    except metadata.PackageNotFoundError:
        return "unreleased"
