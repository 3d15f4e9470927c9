"""The client for programs that use asyncio.

    async with AsyncClient("127.0.0.1:50061") as edge:
        picture = await edge.picture("street.jpg")
        print((await picture.ask("how many cats are there?")).text)
        async for piece in picture.ask("what is on the sign?", stream=True):
            print(piece.text, end="")

Promises the methods of `sync`, to be awaited. One client belongs to one event loop. Leaves opening and asking to
`connection`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, Unpack, overload

from tofc.client.answer import Answer
from tofc.client.configured import Configured
from tofc.client.options import AskOptions
from tofc.client.source import PictureSource
from tofc.client.stream import AsyncAnswerStream
from tofc.client.subject import Conversation, OnePicture, Subject, opened_by

Awaited: TypeAlias = Coroutine[Any, Any, Answer]


class _Asks(Subject):
    @overload
    def ask(self, question: str, *, stream: Literal[False] = False, **options: Unpack[AskOptions]) -> Awaited: ...
    @overload
    def ask(self, question: str, *, stream: Literal[True], **options: Unpack[AskOptions]) -> AsyncAnswerStream: ...
    @overload
    def ask(self, question: str, *, stream: bool, **options: Unpack[AskOptions]) -> Awaited | AsyncAnswerStream: ...
    def ask(self, question: str, *, stream: bool = False, **options: Unpack[AskOptions]) -> Awaited | AsyncAnswerStream:
        """Ask a question; see `Picture.ask`. Await the answer; with `stream=True` iterate over its pieces instead."""
        answer = self._answer(question, options)
        return answer if stream else _whole(answer)


async def _whole(answer: AsyncAnswerStream) -> Answer:
    async with answer:
        return await answer.result()


class AsyncPicture(OnePicture, _Asks):
    """A picture that was opened by `AsyncClient.picture`; it is encoded once and sent once."""

    def chat(self) -> AsyncChat:
        """Begin a conversation about this picture."""
        return AsyncChat(self._client, self._pictures)


class AsyncChat(Conversation, _Asks):
    """A conversation about pictures; see `Chat`."""


class AsyncClient(Configured):
    """Asks an edge server about pictures. Use it with `async with`, or await `close()` at the end.

    The options, names and errors are those of `Client`.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """End the session, and the private server of ":local:". Calling twice is harmless."""
        await self._connection.close()

    async def connect(self, timeout_s: float | None = None) -> None:
        """Connect now rather than at the first question; see `Client.connect`."""
        await self._connection.connect(timeout_s)

    async def picture(self, source: PictureSource) -> AsyncPicture:
        """Open a picture; see `Client.picture`."""
        return AsyncPicture(self, await asyncio.to_thread(self._connection.open, source))

    @overload
    def ask(
        self,
        pictures: Iterable[AsyncPicture],
        question: str,
        *,
        stream: Literal[False] = False,
        **options: Unpack[AskOptions],
    ) -> Awaited: ...
    @overload
    def ask(
        self, pictures: Iterable[AsyncPicture], question: str, *, stream: Literal[True], **options: Unpack[AskOptions]
    ) -> AsyncAnswerStream: ...
    @overload
    def ask(
        self, pictures: Iterable[AsyncPicture], question: str, *, stream: bool, **options: Unpack[AskOptions]
    ) -> Awaited | AsyncAnswerStream: ...
    def ask(
        self, pictures: Iterable[AsyncPicture], question: str, *, stream: bool = False, **options: Unpack[AskOptions]
    ) -> Awaited | AsyncAnswerStream:
        """Ask about several pictures; see `Client.ask`."""
        return _Asks(self, opened_by(self, pictures)).ask(question, stream=stream, **options)

    def chat(self, pictures: Iterable[AsyncPicture]) -> AsyncChat:
        """Begin a conversation about several pictures."""
        return AsyncChat(self, opened_by(self, pictures))
