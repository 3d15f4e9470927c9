"""A picture's way to the server over one link: announced, then sent view by view as it is encoded.

    Picture ──→  (PictureState: the server has it? stop)
    view 0 ─ encode ─ window ─ View ──→ … ViewAck
    view 1 ─ encode ─ …
    image  ─ compress ─ window ─ ImageChunk ──→ … ImageAck                (instead of the views)

Promises never to send a view after the server said that it has them all, to go on after a lost link from what the
server still has, and to begin again when asked to.
Leaves the encoding to `encoder`, the number of views in flight to `link`.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from dataclasses import dataclass, field, replace

from device_client.encoder import EncoderThread
from device_client.link import Event, Link
from device_client.picture import Encoded, Picture
from shared.rpc.errors import LimitError
from shared.rpc.picture_id import wire_id
from shared.rpc.tofc.v1 import tofc_pb2 as pb


@dataclass(kw_only=True)
class Shipment:
    """What one announcement led to; grows while views are sent."""

    fresh: list[Encoded] = field(default_factory=list)  # what was encoded for it, without the packets
    n_bytes: int = 0  # of packets, or of the image file as far as it was sent
    n_views: int = 0
    upload_ms: float = 0.0  # from the end of encoding to the last acknowledgement: what encoding did not hide


class Delivery:
    """One picture under one number (ref) of one link."""

    def __init__(self, link: Link, encoder: EncoderThread, ref: int) -> None:
        self.ref = ref
        self.waiting: set[asyncio.Queue[Event]] = set()  # questions to tell when the picture cannot be sent
        self._link = link
        self._encoder = encoder
        self._state: asyncio.Future[pb.PictureState] = asyncio.get_running_loop().create_future()
        self._told = False  # by the server: it has the picture
        self._failed = False
        self.acknowledged = 0  # views or chunks
        self._task: asyncio.Task[None] | None = None
        self._pending: dict[int, int] = {}  # views, or bytes of a file, by index or offset: on their way
        self._missing = -1  # views, or bytes of a file, that were not acknowledged yet
        self._encoded_at = 0.0
        self._shipment = Shipment()
        link.pictures[ref] = self

    @property
    def unheard(self) -> bool:
        """Whether the last announcement asked for a reply that has not come. (A new picture's asks for none.)"""
        return not self._state.done()

    @property
    def complete(self) -> bool:
        """Whether the server has every view, by its word or by its acknowledgements."""
        return self._told or self._missing == 0

    @property
    def under_way(self) -> bool:
        """Whether views are still being encoded or sent."""
        return self._task is not None and not self._task.done()

    @property
    def failed(self) -> bool:
        """Whether sending ended before its time, for another reason than the link's."""
        return self._failed

    def start(self, picture: Picture, *, patient: bool = False, again: bool = False) -> Shipment:
        """Announce and send.

        ``patient``: the server probably has it, or some of it, so hear its word first. ``again``: it wants the
        picture again; its word comes too, and only what it wants after that is another time.
        """
        self._shipment = shipment = Shipment()
        self._stop()
        self._failed = self._told = False
        self._state = asyncio.get_running_loop().create_future()
        if not (patient or again):
            self._state.set_result(pb.PictureState())
        self._pending.clear()
        self._missing = picture.n_views
        self._link.send(pictures=[self._announcement(picture, reply=patient or again)])
        self._task = asyncio.create_task(self._run(picture, patient, shipment))
        return shipment

    async def _run(self, picture: Picture, patient: bool, shipment: Shipment) -> None:
        try:
            state = await self._state if patient else pb.PictureState()
            if state.complete:
                return
            there = {index for index in state.views if index < picture.n_views}
            self._missing -= len(there)
            for index in range(picture.n_packets):
                if index in there and not picture.form:
                    continue
                known = index < len(picture.packets)
                encoded = await self._encoder.view(picture, index)
                self._check(encoded, picture)
                self._encoded_at = time.perf_counter()
                if picture.form:
                    await self._send_file(encoded.packet, state.image, shipment)
                    shipment.n_views = picture.n_views
                else:
                    self._pending[index] = 1
                    await self._link.send_view(self.ref, index, encoded.packet)
                    shipment.n_bytes += len(encoded.packet)
                    shipment.n_views += 1
                if not known:  # a link holds it to its end: without what may be a megabyte
                    shipment.fresh.append(replace(encoded, packet=b""))
        except Exception as error:
            self._failed = True
            for queue in self.waiting:
                queue.put_nowait(error)

    async def _send_file(self, data: bytes, there: pb.ReceivedImage, shipment: Shipment) -> None:
        offset = begin = _here(data, there)
        self._missing = len(data) - begin
        while offset < len(data):
            length = await self._link.send_chunk(self.ref, offset, data, begins=offset == begin)
            self._pending[offset] = length
            shipment.n_bytes += length
            offset += length

    def _check(self, encoded: Encoded, picture: Picture) -> None:
        most = self._link.limits.image_bytes if picture.form else self._link.limits.packet_bytes
        if picture.form and len(encoded.packet) > most:
            raise LimitError(
                f"the picture takes {len(encoded.packet)} bytes as {picture.form.codec}, this server allows {most}; "
                "lower --quality or --scale",
                reason="IMAGE_TOO_LARGE",
            )
        if len(encoded.packet) > most:
            raise LimitError(
                f"a view takes {len(encoded.packet)} bytes, this server allows {most}; keep fewer features "
                "(--features N)",
                reason="PACKET_TOO_LARGE",
            )

    def abandon(self) -> None:
        """Stop where it is, because nobody asks any more; a later question has to start it again."""
        if self.under_way:
            self._failed = True
            self._stop()

    def on_state(self, state: pb.PictureState) -> None:
        if not self._state.done():
            self._state.set_result(state)
        if state.complete:
            self._told = True
            self._stop()

    def on_ack(self, number: int) -> None:
        self.acknowledged += 1
        self._missing -= self._pending.pop(number, 0)
        if not self._pending:
            self._shipment.upload_ms = (time.perf_counter() - self._encoded_at) * 1e3

    def on_end(self) -> None:
        self._stop()

    def _announcement(self, picture: Picture, *, reply: bool) -> pb.Picture:
        image = None
        if picture.form:
            width, height = picture.form_size
            image = pb.Image(format=f"IMAGE_FORMAT_{picture.form.codec.upper()}", width=width, height=height)
        return pb.Picture(
            ref=self.ref,
            picture_id=wire_id(self._link.welcome.picture_key, picture.picture_id),
            rows=picture.rows,
            columns=picture.columns,
            image=image,
            reply=reply,
        )

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()


def _here(data: bytes, there: pb.ReceivedImage) -> int:
    """How much of a file need not be sent. Its last byte is sent in any case, for the server to begin looking at it."""
    fits = there.bytes <= len(data) and zlib.crc32(data[: there.bytes]) == there.crc32
    return min(there.bytes, len(data) - 1) if fits else 0
