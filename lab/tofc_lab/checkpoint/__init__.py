"""Checkpoints as files: fetching, writing and splitting them, and random ones to try things with."""
