"""The version that the two sides tell each other; leaves comparing versions to the handshake."""

from importlib import metadata


def software_version() -> str:
    """Of the installed distribution; 'unreleased' when running from a source tree that is not installed."""
    try:
        return metadata.version("tofc")
    except metadata.PackageNotFoundError:
        return "unreleased"
