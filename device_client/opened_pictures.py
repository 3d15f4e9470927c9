"""The pictures that the lines of a batch have opened, kept for the lines that follow.

Promises that a picture is encoded once for lines that follow each other, that a file which was replaced under its name
is opened again, and that pixels are kept for one line only: those of several lines would fill the memory.
Leaves asking to `batch`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from device_client.picture import Picture
from device_client.session import Session

_KEPT = 8  # pictures, as packets: questions about the same picture usually follow each other
#: A file is recognised by its times only if it has not changed for this long: some file systems round times to 2 s.
SETTLED_NS = 2_000_000_000
_Version = tuple[int, ...]


class OpenedPictures:
    """The pictures that were opened last, by content, and the paths of files that have not changed since."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._pictures: OrderedDict[bytes, Picture] = OrderedDict()  # by id
        self._paths: OrderedDict[Path, tuple[_Version, bytes]] = OrderedDict()

    def open(self, paths: Sequence[Path]) -> list[Picture]:
        """Return the pictures of one line, opened now unless they are kept. Raises ImageError."""
        known = {path: picture for path in paths if (picture := self._known(path)) is not None}
        for picture_id in [one for one, picture in self._pictures.items() if picture.image is not None]:
            if all(picture.picture_id != picture_id for picture in known.values()):
                del self._pictures[picture_id]  # never encoded: the server had it, or encoding failed
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
        version = _version(path)  # read before opening: a file that replaces it afterwards has another version
        picture = self._session.open(path)
        self._paths.pop(path, None)
        if version is not None:
            self._paths[path] = version, picture.picture_id
        while len(self._paths) > _KEPT:
            self._paths.popitem(last=False)
        return self._pictures.get(picture.picture_id, picture)


def _version(path: Path) -> _Version | None:
    """Return what changes when a file is replaced or written to.

    None if it changed so recently that another change could leave the same times.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < SETTLED_NS:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
