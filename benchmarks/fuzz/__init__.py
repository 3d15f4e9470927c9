"""A coverage-guided fuzzer over packets and over the stream's messages; `python -m benchmarks.fuzz` runs it."""

from __future__ import annotations


class Finding(AssertionError):
    """A broken promise: something that must hold for any input does not."""
