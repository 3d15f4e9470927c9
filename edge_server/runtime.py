"""What a server answers questions with: the loaded backend, and the slots and threads that all questions share.

Promises that it never changes while the server runs. Leaves making it to `server`.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

from edge_server.admission import Admission
from edge_server.backend import Backend
from edge_server.image_decoding import ImageDecodeQueue
from edge_server.observer import SILENT, Observer


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The backend, and the resources that all questions share."""

    backend: Backend
    admission: Admission
    pool: Executor  # decodes packets and builds prompts
    picture_timeout_s: float  # how long a question waits for the views of its pictures
    image_decoder: ImageDecodeQueue | None = None  # None: pictures come as packets only
    observer: Observer = SILENT
