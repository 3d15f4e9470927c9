"""Both halves in this process: a real edge server on the loopback address, and a session with it for each way.

    LocalEdge ─┬─ packets       Session(TowerEncoder) ────────┐
               └─ uncompressed  Session(UncompressedEncoder) ─┴─→ edge server, one model

Promises what `device-client` and `edge-server` do with the same question. Leaves uncompressed features to
`uncompressed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from PIL import Image

from device_client.compute import Compute
from device_client.encoder import Encoder, TowerEncoder
from device_client.endpoint.messages import read_messages
from device_client.endpoint.run import ALL
from device_client.link import Target
from device_client.picture import open_picture
from device_client.rate import RateChoice
from device_client.sampling import Sampling
from device_client.session import Session
from edge_server import backend
from edge_server.server import RunningServer, start
from edge_server.settings import ServerSettings, SessionLimits
from tofc.errors import DeadlineError, ImageError, InvalidRequestError, LimitError
from tofc_lab.bench.asker import Asker, Reply, message
from tofc_lab.bench.question import Part
from tofc_lab.bench.uncompressed import FeatureStore, UncompressedEncoder, with_uncompressed

GRACE_S = 0.5


class SessionAsker:
    """Asks over a session."""

    def __init__(self, session: Session, encoder: Encoder) -> None:
        self._session = session
        self._encoder = encoder

    async def ask(self, parts: Sequence[Part], pictures: Sequence[Image.Image], max_tokens: int) -> Reply:
        """See `Asker`."""
        named = [{"type": "image_url", "image_url": None, "uuid": str(number)} for number in range(len(pictures))]
        turns, media = read_messages([message(parts, named)])
        encoder = self._encoder
        welcome = await self._session.connect()
        most = welcome.limits.new_tokens
        try:
            opened = [
                open_picture(
                    pictures[int(one.uuid or 0)], encoder.rule, encoder.codec_id, encoder.setting, encoder.form
                )
                for one in media
            ]
            answer = self._session.converse(
                opened,
                turns,
                sampling=Sampling(max_tokens=min(max_tokens, most) if most else max_tokens, temperature=0.0),
                thinking_budget=ALL,
            )
            report = await answer.result()
        except (ImageError, InvalidRequestError, LimitError, DeadlineError) as error:
            return Reply(text="", picture_bytes=0, error=str(error))
        return Reply(text=report.answer, picture_bytes=report.bytes_picture)


class LocalEdge:
    """A running server and its sessions. Use it with `async with`."""

    def __init__(self, model: Path, choice: RateChoice, feature_codec: str, device: str, at_once: int) -> None:
        """Read configurations, no weights; `at_once`: most questions at a time.

        Raises UsageError for a preset, a codec or a device that is not there.
        """
        compute = Compute(device=device)
        self._store = FeatureStore()
        self._model, self._device, self._at_once = model, device, at_once
        self.encoder = TowerEncoder.open(model, choice, compute, feature_codec)
        self._uncompressed = UncompressedEncoder.of(model, self._store, compute)
        self._sessions: list[Session] = []
        self._running: RunningServer | None = None

    async def __aenter__(self) -> Self:
        settings = ServerSettings(
            model=self._model,
            port=0,
            device=self._device,
            grace_s=GRACE_S,
            limits=SessionLimits(questions_in_flight=self._at_once),
        )
        self._running = await start(
            settings, lambda given: with_uncompressed(backend.load(given), self._model, self._store)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        for session in self._sessions:
            await session.close()
        if self._running is not None:
            await self._running.stop()

    def packets(self) -> Asker:
        """Return what asks with packets."""
        return self._asker(self.encoder)

    def uncompressed(self) -> Asker:
        """Return what asks with uncompressed features."""
        return self._asker(self._uncompressed)

    def _asker(self, encoder: Encoder) -> Asker:
        assert self._running is not None, "it is entered"
        session = Session(Target(address=self._running.address), encoder)
        self._sessions.append(session)
        return SessionAsker(session, encoder)
