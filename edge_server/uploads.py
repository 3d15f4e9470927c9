"""The pictures that one session announced, and which of them it may still be sending.

Promises that a ref stands for one picture throughout the session, and that a picture which a question names is held
until the question is done. Leaves memory, and views of other sessions, to `picture_cache`.
"""

from __future__ import annotations

from edge_server.image_decoding import check_image
from edge_server.picture_cache import HeldPicture, PictureCache
from edge_server.settings import SessionLimits
from tofc.errors import CallError, DuplicateError, InvalidRequestError, LimitError, UnknownReferenceError
from tofc.model.views import ViewRule
from tofc.rpc.picture_id import ID_BYTES
from tofc.v1 import tofc_pb2 as pb


class Uploads:
    """One session's announcements of pictures, by ref; `len` counts them."""

    def __init__(self, pictures: PictureCache, limits: SessionLimits, rule: ViewRule | None) -> None:
        """`rule` is the view rule for image files; None: the server does not accept them."""
        self._pictures = pictures
        self._limits = limits
        self._rule = rule
        self._announced: dict[int, pb.Picture] = {}  # by ref
        self._under_way: dict[bytes, HeldPicture] = {}  # incomplete when last checked, oldest first

    def __len__(self) -> int:
        return len(self._announced)

    def get(self, ref: int) -> pb.Picture | None:
        """Return the announcement of a ref; None if there is none."""
        return self._announced.get(ref)

    def announce(self, announced: pb.Picture) -> HeldPicture:
        """Open the picture of an announcement, which may be repeated. Raises CallError for a broken rule."""
        announced = _without_want_state(announced)
        known = self._announced.get(announced.ref)
        if known is None:
            self._check(announced)
        elif known != announced:
            raise DuplicateError(
                f"ref {announced.ref} stands for picture {known.picture_id.hex()} already; give another picture "
                "another ref",
                reason="DUPLICATE_REF",
            )
        picture = self._pictures.open(announced.picture_id, announced.rows, announced.columns)
        self._announced[announced.ref] = announced
        self._expect(picture)
        return picture

    def hold(self, refs: list[int]) -> tuple[list[HeldPicture], list[int]]:
        """Return the pictures of a question, held until `release`, and the refs that must be sent again.

        A picture that was evicted is opened again without views, so that the question waits for it as for any other.
        Raises UnknownReferenceError, LimitError, and MismatchError if it is held with another layout meanwhile.
        """
        for ref in refs:
            if ref not in self._announced:
                raise UnknownReferenceError(
                    f"the question names ref {ref}, which no Picture announced; announce it first",
                    reason="PICTURE_UNKNOWN",
                )
        pictures: list[HeldPicture] = []
        evicted: list[int] = []
        try:
            for ref in refs:
                announced = self._announced[ref]
                held = self._pictures.get(announced.picture_id, (announced.rows, announced.columns))
                if held is None or not (held.complete or self._under_way.get(announced.picture_id) is held):
                    evicted.append(ref)
                picture = self._pictures.open(announced.picture_id, announced.rows, announced.columns)
                picture.questions += 1
                pictures.append(picture)
                self._expect(picture)
        except CallError:
            self.release(pictures)
            raise
        for picture in pictures:
            self._pictures.count_use(picture)
        return pictures, evicted

    def release(self, pictures: list[HeldPicture]) -> None:
        """Let go of the pictures of a question that is done."""
        for picture in pictures:
            picture.questions -= 1
            self._pictures.drop_if_unused(picture)

    def close(self, *, keep: bool) -> None:
        """End the uploads of a session. `keep` what has arrived: its device may come back to continue."""
        for picture in self._under_way.values():
            self._let_go(picture, keep=keep)
        self._under_way.clear()

    def _check(self, announced: pb.Picture) -> None:
        if len(self._announced) >= self._limits.numbers:
            raise LimitError(
                f"the session has announced {self._limits.numbers} pictures, which is its limit; open another session",
                reason="SESSION_USED_UP",
            )
        if len(announced.picture_id) != ID_BYTES:
            raise InvalidRequestError(
                f"picture_id must have {ID_BYTES} bytes, got {len(announced.picture_id)}",
                reason="PICTURE_ID_INVALID",
            )
        rows, columns = announced.rows, announced.columns
        if (rows == 0) != (columns == 0):
            raise InvalidRequestError(
                f"rows and columns must both be 0 (only the global view) or both at least 1, got {rows} x {columns}",
                reason="LAYOUT_INVALID",
            )
        if rows * columns + 1 > self._limits.views_per_picture:
            raise InvalidRequestError(
                f"{rows} x {columns} crops and the global view are {rows * columns + 1} views, at most "
                f"{self._limits.views_per_picture} are allowed; scale the picture down",
                reason="TOO_MANY_VIEWS",
            )
        if announced.HasField("image"):
            check_image(announced, self._limits, self._rule)

    def _expect(self, picture: HeldPicture) -> None:
        """Hold an incomplete picture while this session may send it; beyond the limit, let go of the oldest."""
        for picture_id in [one for one, upload in self._under_way.items() if upload.complete]:
            self._let_go(self._under_way.pop(picture_id))
        if picture.complete or self._under_way.get(picture.picture_id) is picture:
            return
        picture.uploaders += 1
        self._under_way[picture.picture_id] = picture
        if len(self._under_way) > self._limits.pictures_under_way:
            oldest = next((one for one in self._under_way.values() if not one.questions), None)
            if oldest is not None:
                self._let_go(self._under_way.pop(oldest.picture_id))

    def _let_go(self, picture: HeldPicture, *, keep: bool = False) -> None:
        picture.uploaders -= 1
        self._pictures.drop_if_unused(picture, keep=keep)


def _without_want_state(announced: pb.Picture) -> pb.Picture:
    """Return a copy of an announcement without `want_state`, which may differ when the announcement is repeated.

    Unknown fields, whose size no limit counts, are discarded before copying: a message keeps the memory of what is
    cleared in it.
    """
    announced.DiscardUnknownFields()
    kept = pb.Picture()
    kept.CopyFrom(announced)
    kept.ClearField("want_state")
    return kept
