"""The pictures that the lines of a batch have opened, kept for the lines that follow.

Promises that a picture is encoded once for lines that follow each other, that a file which was replaced is opened
again, whatever its name, and that pixels are kept of one line only: those of a few would fill the memory. Leaves
asking to `batch`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from device_client.picture import Picture
from device_client.session import Session

_KEPT = 8  # pictures, as packets: questions about one usually follow each other
#: ns that a file must have lain untouched to be known by its times: the coarsest clock of a file system ticks so slowly
SETTLED = 2_000_000_000
_Version = tuple[int, ...]


class Opened:
    """By content; paths lead to it while their files stay as they are."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._pictures: OrderedDict[bytes, Picture] = OrderedDict()  # by id
        self._paths: OrderedDict[Path, tuple[_Version, bytes]] = OrderedDict()

    def take(self, paths: Sequence[Path]) -> list[Picture]:
        """A line's pictures. Raises ImageError."""
        known = {path: picture for path in paths if (picture := self._known(path)) is not None}
        for picture_id in [one for one, picture in self._pictures.items() if picture.image is not None]:
            if all(picture.picture_id != picture_id for picture in known.values()):
                del self._pictures[picture_id]  # the server had it, or it could not be encoded
        for path in paths:
            if path not in known:
                known[path] = self._open(path)
            self._pictures[known[path].picture_id] = known[path]
            self._pictures.move_to_end(known[path].picture_id)
        while len(self._pictures) > _KEPT:
            self._pictures.popitem(last=False)
        return [known[path] for path in paths]

    def _known(self, path: Path) -> Picture | None:
        version, picture_id = self._paths.get(path, (None, b""))
        return self._pictures.get(picture_id) if version is not None and version == _version(path) else None

    def _open(self, path: Path) -> Picture:
        version = _version(path)  # before it is opened: what replaces it from now on is another
        picture = self._session.open(path)
        self._paths.pop(path, None)
        if version is not None:
            self._paths[path] = version, picture.picture_id
        while len(self._paths) > _KEPT:
            self._paths.popitem(last=False)
        return self._pictures.get(picture.picture_id, picture)


def _version(path: Path) -> _Version | None:
    """What changes when a file is replaced or written to; None where it was just now, and may be again unseen."""
    try:
        found = path.stat()
    except OSError:
        return None
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < SETTLED:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
