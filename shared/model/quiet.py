"""Libraries kept from speaking to the person about a file's oddities.

Promises that within ``quiet`` no warning and no line of Pillow's log gets out, and within ``quiet_stderr`` nothing
that C code prints. Leaves errors alone: those are told by whoever opened the file.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, and nothing from Pillow's loggers. For one thread at a time, as ``warnings`` itself is."""
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
def quiet_stderr() -> Iterator[None]:
    """Nothing on the process's stderr, whoever writes it: libtiff prints there, and Pillow does not stop it."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
