"""A coverage-guided fuzzer over packets and over the stream's messages; ``python -m benchmarks.fuzz`` runs it."""


class Finding(AssertionError):
    """Something that must hold does not."""
