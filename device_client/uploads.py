"""The uploads of a session, one for each picture on the current link.

Promises that a picture is uploaded once over one link, however many questions are about it, and that after a lost link
the server first says what it still has. Leaves the upload itself to `picture_upload`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from device_client.encoder import EncoderThread
from device_client.link import Link
from device_client.picture import Picture
from device_client.picture_upload import PictureUpload, UploadStats

KNOWN = 4096  # pictures that are remembered as sent over earlier links: a session may last for weeks


class Uploads:
    """Uploads by picture_id. Those of an earlier link are dropped with it."""

    def __init__(self, encoder: EncoderThread) -> None:
        self._encoder = encoder
        self._link: Link | None = None
        self._by_id: dict[bytes, PictureUpload] = {}  # over this link
        self._known: dict[tuple[str, bytes], None] = {}  # what servers had of earlier links, by address, oldest first

    def ensure(self, link: Link, picture: Picture) -> tuple[PictureUpload, UploadStats | None]:
        """Return the picture's upload over `link`, and its stats if it had to be started now."""
        if link is not self._link:
            if self._link is not None:
                arrived = [key for key, one in self._by_id.items() if one.complete or one.acknowledged]
                self._remember(self._link.address, arrived)
            self._link, self._by_id = link, {}
        upload = self._by_id.get(picture.picture_id)
        if upload is None:
            upload = PictureUpload(link, self._encoder, ref=len(self._by_id) + 1)
            self._by_id[picture.picture_id] = upload
        elif not upload.failed:
            return upload, None
        return upload, upload.start(picture, await_state=(link.address, picture.picture_id) in self._known)

    def _remember(self, address: str, picture_ids: Iterable[bytes]) -> None:
        """Remember what a server has something of, and forget the oldest: it is sent without asking the server."""
        for one in picture_ids:
            self._known.pop((address, one), None)
            self._known[address, one] = None
        for oldest in list(islice(self._known, max(0, len(self._known) - KNOWN))):
            del self._known[oldest]
