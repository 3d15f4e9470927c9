"""The connection of a client, blocking or not: one session with one server, opened when it is first needed.

    source ─ open_picture ─→ picture         ask ─ session ─→ pieces, answer
                                                      └── LocalServer, for ":local:"

Promises that everything but `open` runs in one event loop, and that nothing is opened after `close`. Leaves sending
and receiving to `device_client.session`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any

from device_client.encoder import Encoder
from device_client.history import without_older_half
from device_client.link import Target
from device_client.picture import Picture, open_picture
from device_client.session import Session
from tofc.client.answer import Answer, Piece
from tofc.client.argument_types import check_types
from tofc.client.local import LocalServer
from tofc.client.options import Asking, errors_name_keywords
from tofc.client.source import PictureSource, read_source
from tofc.errors import CallError, UsageError
from tofc.tracing import OFF, open_tracer


class Connection:
    """The connection to one of `targets`, or, if there are none, to a private server that `start_local` starts."""

    def __init__(
        self,
        *,
        targets: Sequence[Target],
        start_local: Callable[[], Coroutine[Any, Any, LocalServer]],
        open_encoder: Callable[[], Encoder],
        wait_s: float | None,
    ) -> None:
        self._targets = targets
        self._start_local = start_local
        self._open_encoder = open_encoder
        self._wait_s = wait_s
        self._closed = False
        self._encoder: Encoder | None = None
        self._encoder_lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        self._session: Session | None = None
        self._local: LocalServer | None = None
        self._tracer = OFF

    def encoder(self) -> Encoder:
        """Return the encoder, opened from the model's configuration; no weights are read. Any thread may call it."""
        with self._encoder_lock:
            if self._encoder is None:
                with errors_name_keywords():
                    self._encoder = self._open_encoder()
            return self._encoder

    def open(self, source: PictureSource) -> Picture:
        """Open and identify a picture. Any thread may call it; it takes as long as decoding the file."""
        self._check_open()
        encoder = self.encoder()
        return open_picture(read_source(source), encoder.rule, encoder.codec_id, encoder.setting, encoder.form)

    async def connect(self, timeout_s: float | None) -> None:
        """Connect now rather than at the first question."""
        check_types(timeout_s=timeout_s)
        await (await self._opened()).connect(timeout_s)

    async def ask(
        self, pictures: Sequence[Picture], question: str, asking: Asking, turns: list[tuple[str, str]] | None
    ) -> AsyncGenerator[Piece | Answer, None]:
        """Yield the pieces of an answer as they arrive, and the whole answer last.

        `turns`: of the conversation. The answer is added to them; while they are too long, their older half is
        dropped.
        """
        session = await self._opened()
        history = earlier = list(turns or ())
        while True:
            receiving = session.ask(
                pictures,
                question,
                history=history,
                sampling=asking.sampling,
                thinking=asking.thinking,
                reasoning=asking.reasoning,
                progress=True,
                timeout_s=asking.timeout_s,
            )
            try:
                async with aclosing(receiving):
                    async for delta in receiving:
                        yield Piece.of(delta)
            except CallError as error:
                history = without_older_half(history, error)
                continue
            break
        assert receiving.report is not None, "it was iterated to its end"
        answer = Answer.of(receiving.report)
        if turns is not None:
            del turns[: len(earlier) - len(history)]
            if answer.text.strip():
                turns.append((question, answer.text))
        yield answer

    async def close(self) -> None:
        """End the session, and the private server. Calling twice is harmless."""
        self._closed = True
        async with self._opening:
            session, self._session = self._session, None
            local, self._local = self._local, None
            try:
                if session is not None:
                    await session.close()
            finally:
                if local is not None:
                    await local.stop()
                await asyncio.to_thread(self._tracer.close)

    async def _opened(self) -> Session:
        self._check_open()
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise UsageError("this AsyncClient was used in another event loop; make one client for each loop")
        self._loop = loop
        async with self._opening:
            self._check_open()
            if self._session is None:
                encoder = await asyncio.to_thread(self.encoder)
                targets = self._targets
                if not targets:
                    self._local = self._local or await self._start_local()
                    targets = (self._local.target,)
                self._tracer = open_tracer("tofc")
                self._session = Session(targets, encoder, wait_s=self._wait_s, tracer=self._tracer)
            return self._session

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this client was closed; make another one")
