"""The subject of a question: pictures, and in a conversation the turns before it.

Promises that a picture is only used with the client that opened it. Leaves waiting for the answer to `aio` and `sync`,
which differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from device_client.picture import Picture
from tofc.client.argument_types import check_types
from tofc.client.configured import Configured
from tofc.client.options import AskOptions, read_options
from tofc.client.stream import AsyncAnswerStream
from tofc.errors import UsageError

Turn = tuple[str, str]  # question, answer


class Subject:
    """Pictures of one client. `turns`: earlier questions and answers of a conversation; None: no conversation."""

    def __init__(self, client: Configured, pictures: Sequence[Picture], turns: list[Turn] | None = None) -> None:
        self._client = client  # which must not be garbage-collected before this
        self._pictures = tuple(pictures)
        self._turns = turns

    def _answer(self, question: str, options: AskOptions) -> AsyncAnswerStream:
        check_types(question=question)
        asking = read_options(self._client._timeout_s, options)
        return AsyncAnswerStream(self._client._connection.ask(self._pictures, question, asking, self._turns))


class OnePicture(Subject):
    """A picture that a client opened."""

    def __init__(self, client: Configured, picture: Picture) -> None:
        super().__init__(client, [picture])

    @property
    def id(self) -> str:
        """32 hex digits: the same for the same pixels under the same model and settings, wherever they came from."""
        return self._pictures[0].picture_id.hex()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"


class Conversation(Subject):
    """Questions that are asked with the turns before them."""

    def __init__(self, client: Configured, pictures: Sequence[Picture]) -> None:
        super().__init__(client, pictures, [])

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns (question, answer) that are kept. A question without an answer is not a turn."""
        return tuple(self._turns or ())


def opened_by(client: Configured, given: Iterable[OnePicture]) -> list[Picture]:
    """Return the pictures to ask about. Raises UsageError for what `client` has not opened, and for none at all."""
    pictures: list[Picture] = []
    for one in [given] if isinstance(given, OnePicture) else given:
        if not isinstance(one, OnePicture):
            raise UsageError(f"{type(one).__name__} is not an opened picture; open it first: picture(…)")
        if one._client is not client:
            raise UsageError(f"{one!r} was opened by another client; open it with this one too")
        pictures += one._pictures
    if not pictures:
        raise UsageError("give at least one picture to ask about")
    return pictures
