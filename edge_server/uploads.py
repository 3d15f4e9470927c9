"""The pictures that one session numbered, and those of them it may still be sending.

Promises that a session numbers each picture once, and that one it names in a question is held until
the question is done. Leaves memory, and views of other sessions, to `pictures`.
"""

from edge_server.images import check_image
from edge_server.pictures import Picture, PictureCache
from edge_server.settings import SessionLimits
from shared.model.views import ViewRule
from shared.rpc.errors import DuplicateError, InvalidRequestError, LimitError, TofcError, UnknownReferenceError
from shared.rpc.picture_id import ID_BYTES
from shared.rpc.tofc.v1 import tofc_pb2


class Uploads:
    """One session's numbers for pictures; `len` counts them."""

    def __init__(self, pictures: PictureCache, limits: SessionLimits, rule: ViewRule | None) -> None:
        """`rule` is that of the images this server takes; None: it takes none."""
        self._pictures = pictures
        self._limits = limits
        self._rule = rule
        self._announced: dict[int, tofc_pb2.Picture] = {}  # by ref
        self._under_way: dict[bytes, Picture] = {}  # incomplete when last looked at, oldest first

    def __len__(self) -> int:
        return len(self._announced)

    def get(self, ref: int) -> tofc_pb2.Picture | None:
        """What was announced under a number."""
        return self._announced.get(ref)

    def announce(self, announced: tofc_pb2.Picture) -> Picture:
        """The picture of an announcement, which may be repeated. Raises TofcError for a broken rule."""
        announced = _lasting(announced)
        known = self._announced.get(announced.ref)
        if known is None:
            self._check(announced)
        elif known != announced:
            raise DuplicateError(
                f"ref {announced.ref} stands for picture {known.picture_id.hex()} already; number another picture "
                "differently",
                reason="DUPLICATE_REF",
            )
        picture = self._pictures.open(announced.picture_id, announced.rows, announced.columns)
        self._announced[announced.ref] = announced
        self._expect(picture)
        return picture

    def hold(self, refs: list[int]) -> tuple[list[Picture], list[int]]:
        """Pictures of a question, not to be evicted until `release`, and the refs to be sent again.

        A picture that is gone is opened anew, so that the question can wait for it like for any other.
        Raises UnknownReferenceError, LimitError.
        """
        for ref in refs:
            if ref not in self._announced:
                raise UnknownReferenceError(
                    f"the question names ref {ref}, which no Picture announced; announce it first",
                    reason="PICTURE_UNKNOWN",
                )
        pictures: list[Picture] = []
        gone: list[int] = []
        try:
            for ref in refs:
                announced = self._announced[ref]
                held = self._pictures.get(announced.picture_id, (announced.rows, announced.columns))
                if held is None or not (held.complete or self._under_way.get(announced.picture_id) is held):
                    gone.append(ref)
                picture = self._pictures.open(announced.picture_id, announced.rows, announced.columns)
                picture.questions += 1
                pictures.append(picture)
                self._expect(picture)
        except TofcError:
            self.release(pictures)
            raise
        return pictures, gone

    def release(self, pictures: list[Picture]) -> None:
        """A question is done with its pictures."""
        for picture in pictures:
            picture.questions -= 1
            self._pictures.settle(picture)

    def close(self, *, lost: bool) -> None:
        """The session sends nothing any more. ``lost``: its link was, and its device may come back for the rest."""
        for picture in self._under_way.values():
            self._let_go(picture, keep=lost)
        self._under_way.clear()

    def _check(self, announced: tofc_pb2.Picture) -> None:
        if len(self._announced) >= self._limits.numbers:
            raise LimitError(
                f"the session has numbered {self._limits.numbers} pictures; open another", reason="SESSION_USED_UP"
            )
        if len(announced.picture_id) != ID_BYTES:
            raise InvalidRequestError(
                f"picture_id has {len(announced.picture_id)} bytes; it is a hash of {ID_BYTES}",
                reason="PICTURE_ID_INVALID",
            )
        rows, columns = announced.rows, announced.columns
        if (rows == 0) != (columns == 0):
            raise InvalidRequestError(
                f"{rows} x {columns} crops; both are 0 (only the global view) or both at least 1",
                reason="LAYOUT_INVALID",
            )
        if rows * columns + 1 > self._limits.views_per_picture:
            raise InvalidRequestError(
                f"{rows} x {columns} crops and the global view are {rows * columns + 1} views, allowed are "
                f"{self._limits.views_per_picture}; scale the picture down",
                reason="TOO_MANY_VIEWS",
            )
        if announced.HasField("image"):
            check_image(announced, self._limits, self._rule)

    def _expect(self, picture: Picture) -> None:
        """Keeps an incomplete picture while this session may send it; the oldest of too many goes."""
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

    def _let_go(self, picture: Picture, *, keep: bool = False) -> None:
        picture.uploaders -= 1
        self._pictures.settle(picture, keep=keep)


def _lasting(announced: tofc_pb2.Picture) -> tofc_pb2.Picture:
    """What an announcement says about its picture, without the wish for a reply, which is its own.

    Nor what this version does not know, which no limit counts: taken off before it is copied, because a copy frees
    the memory of what it loses only when it goes itself.
    """
    announced.DiscardUnknownFields()
    lasting = tofc_pb2.Picture()
    lasting.CopyFrom(announced)
    lasting.ClearField("reply")
    return lasting
