"""The client that blocks, for scripts, notebooks and threads.

    with Client("127.0.0.1:50061") as edge:
        picture = edge.picture("street.jpg")
        print(picture.ask("how many cats are there?").text)
        for piece in picture.ask("what is on the sign?", stream=True):
            print(piece.text, end="")

Promises that every method may be called from any thread, even one that runs an event loop, and that Ctrl-C gives up
the question that is waited for. Leaves the work to `connection`, in the event loop of a `LoopThread`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, cast, overload

from tofc.client.answer import Answer, Piece
from tofc.client.configured import Configured
from tofc.client.loop_thread import LoopThread
from tofc.client.options import AskOptions
from tofc.client.source import PictureSource
from tofc.client.stream import AsyncAnswerStream
from tofc.client.subject import Conversation, OnePicture, Subject, opened_by
from tofc.errors import CancelledError, UsageError

T = TypeVar("T")


class AnswerStream:
    """An answer that is being received: iterate over its pieces, or call `result()`, or both in this order.

    The question is sent when the first piece is waited for. Raises what `ask` raises. An answer is given up by
    `close()`, at the end of a `with`, or when it is garbage-collected; the server then stops.
    """

    def __init__(self, client: Client, stream: AsyncAnswerStream) -> None:
        self._client = client
        self._stream = stream

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        if (piece := self._client._run(self._stream.next_piece)) is None:
            raise StopIteration
        return piece

    def result(self) -> Answer:
        """Wait for the end and return the whole answer; after the end, return it again."""
        return self._client._run(self._stream.result)

    def close(self) -> None:
        """Give the question up if it has not ended; a thread that waits for it gets `CancelledError`."""
        with suppress(UsageError, CancelledError):  # the client was closed, which gives up all questions
            self._client._run(self._stream.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


class _Asks(Subject):
    @overload
    def ask(self, question: str, *, stream: Literal[False] = False, **options: Unpack[AskOptions]) -> Answer: ...
    @overload
    def ask(self, question: str, *, stream: Literal[True], **options: Unpack[AskOptions]) -> AnswerStream: ...
    @overload
    def ask(self, question: str, *, stream: bool, **options: Unpack[AskOptions]) -> Answer | AnswerStream: ...
    def ask(self, question: str, *, stream: bool = False, **options: Unpack[AskOptions]) -> Answer | AnswerStream:
        """Ask a question and wait for the answer; with `stream=True` return at once, and iterate over its pieces.

        Args:
            question: what to ask.
            stream: whether to return an `AnswerStream`.
            options: `max_tokens`, `temperature`, `top_p`, `top_k`, `seed`, `thinking`, `pacore`, `vote`, `rollouts`,
                `token_budget`, `timeout_s`: see `AskOptions`.

        Raises:
            UsageError: the question is empty, an option is out of range, or the client was closed.
            DeadlineError: there was no answer within `timeout_s`.
            UnavailableError: no server answers, or the link was lost and could not be replaced.
            EncoderError: the picture could not be encoded; a package may be missing.
            LimitError, MismatchError, TokenError, …: the server refuses (`CallError`).
        """
        client = cast(Client, self._client)
        answer = AnswerStream(client, self._answer(question, options))
        if stream:
            return answer
        with answer:
            return answer.result()


class Picture(OnePicture, _Asks):
    """A picture that was opened by `Client.picture`; it is encoded once and sent once."""

    def chat(self) -> Chat:
        """Begin a conversation about this picture."""
        return Chat(self._client, self._pictures)


class Chat(Conversation, _Asks):
    """A conversation about pictures: each question is asked with the turns before it. Ask one at a time.

    When it becomes too long for the server or the model, the older half of its turns is dropped.
    """


class Client(Configured):
    """Asks an edge server about pictures. Use it with `with`, or call `close()` at the end.

    `Client(":local:")` runs device and server in this process. A client that is garbage-collected is closed.
    """

    def _prepare(self) -> None:
        self._thread = LoopThread(self._connection.close)
        finalizer = weakref.finalize(self, self._thread.close, 0)
        finalizer.atexit = False  # when the interpreter exits, `loop_thread` closes all loops and waits for them

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the session, and the private server of ":local:". Questions in flight end with an error.

        Calling twice is harmless. It takes two seconds at most, unless a private server is still loading.
        """
        self._thread.close()

    def connect(self, timeout_s: float | None = None) -> None:
        """Connect now rather than at the first question.

        Raises:
            UnavailableError: no server answers, or not within `timeout_s` seconds.
            MismatchError, TokenError, …: the server refuses.
            TlsError: no TLS connection that both sides trust.
        """
        self._run(lambda: self._connection.connect(timeout_s))

    def picture(self, source: PictureSource) -> Picture:
        """Open a picture: a path, the bytes of an image file, a PIL image, or an array [H, W, 3] of uint8 (RGB).

        It is decoded and identified here, and encoded when it is first asked about. The file, image or array may change
        afterwards.

        Raises:
            ImageError: it is not a picture, is damaged, or is too large.
            CheckpointError: the model's folder cannot be used.
        """
        return Picture(self, self._connection.open(source))

    @overload
    def ask(
        self,
        pictures: Iterable[Picture],
        question: str,
        *,
        stream: Literal[False] = False,
        **options: Unpack[AskOptions],
    ) -> Answer: ...
    @overload
    def ask(
        self, pictures: Iterable[Picture], question: str, *, stream: Literal[True], **options: Unpack[AskOptions]
    ) -> AnswerStream: ...
    @overload
    def ask(
        self, pictures: Iterable[Picture], question: str, *, stream: bool, **options: Unpack[AskOptions]
    ) -> Answer | AnswerStream: ...
    def ask(
        self, pictures: Iterable[Picture], question: str, *, stream: bool = False, **options: Unpack[AskOptions]
    ) -> Answer | AnswerStream:
        """Ask about several pictures of this client, in their order; otherwise like `Picture.ask`."""
        return _Asks(self, opened_by(self, pictures)).ask(question, stream=stream, **options)

    def chat(self, pictures: Iterable[Picture]) -> Chat:
        """Begin a conversation about several pictures."""
        return Chat(self, opened_by(self, pictures))

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return self._thread.run(work)
