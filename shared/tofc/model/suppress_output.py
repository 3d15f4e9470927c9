"""Suppresses what libraries print about damaged or unusual image files.

Promises that `suppress_warnings` suppresses warnings and Pillow's log, and `suppress_stderr` whatever C code prints.
Leaves errors to the code that opens the file.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Suppress warnings and Pillow's loggers. For one thread at a time, like `warnings` itself."""
    logger = logging.getLogger("PIL")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def suppress_stderr() -> Iterator[None]:
    """Suppress everything written to the process's stderr, where libtiff prints and Pillow does not prevent it."""
    try:
        saved = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
