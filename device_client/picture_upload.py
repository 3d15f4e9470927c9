"""The upload of one picture over one link: announced, then sent view by view as it is encoded.

    Picture ──→  (PictureState: the server has it? stop)      leaves with the first views, if encoded within HOLD_S
    views ─ encode ─ window ─ View ──→ … ViewAck              of several views in one packet, if the server takes them
    views ─ encode ─ …                                        may wait for the next views, the last one does not
    image  ─ compress ─ window ─ ImageChunk ──→ … ImageAck                (instead of the views)

Promises to send no view after the server said that it has them all, to send what the server lacks after a lost link
in the fewest bytes, and to start again when the server requests it. Leaves the encoding to `encoder`, the number of
views in flight to `link`, and which picture needs an upload to `uploads`.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from dataclasses import dataclass, field, replace

from device_client.encoder import EncoderThread
from device_client.link import Event, Link
from device_client.picture import Encoded, Picture
from tofc.errors import LimitError
from tofc.rpc.picture_id import wire_id
from tofc.v1 import tofc_pb2 as pb


@dataclass(kw_only=True)
class UploadStats:
    """The cost of one announcement and what followed it; grows while views are sent."""

    encoded_now: list[Encoded] = field(default_factory=list)  # what had to be encoded for it, without the packets
    n_bytes: int = 0  # sent: of packets, or of the image file
    n_views: int = 0
    last_packet_views: int = 0  # of the last packet; 0: none was sent, or an image file
    started_s: float = 0.0  # when the picture was announced, of time.perf_counter
    ended_s: float = 0.0  # when the last acknowledgement so far arrived; 0: none did
    upload_ms: float = 0.0  # from the end of encoding to the last acknowledgement: what encoding did not hide


class PictureUpload:
    """The upload of one picture, under its number (ref) on one link."""

    def __init__(self, link: Link, encoder: EncoderThread, ref: int) -> None:
        self.ref = ref
        self.waiting: set[asyncio.Queue[Event]] = set()  # of questions: each gets the error if the upload fails
        self._link = link
        self._encoder = encoder
        self._state: asyncio.Future[pb.PictureState] = asyncio.get_running_loop().create_future()
        self._server_has_it = False  # as the server said
        self._failed = False
        self.acknowledged = 0  # views or chunks
        self._task: asyncio.Task[None] | None = None
        self._in_flight: dict[int, int] = {}  # views by index (1; 0: the server had it), or bytes of a file by offset
        self._unacknowledged = -1  # views, or bytes of a file, whether sent or not
        self._encoded_at = 0.0
        self._stats = UploadStats()
        link.pictures[ref] = self

    @property
    def awaiting_reply(self) -> bool:
        """Return whether the last announcement requested a reply that has not arrived."""
        return not self._state.done()

    @property
    def complete(self) -> bool:
        """Return whether the server has every view, as it said or as its acknowledgements show."""
        return self._server_has_it or self._unacknowledged == 0

    @property
    def running(self) -> bool:
        """Return whether views are still being encoded or sent."""
        return self._task is not None and not self._task.done()

    @property
    def failed(self) -> bool:
        """Return whether the upload ended early for another reason than a lost link."""
        return self._failed

    def start(self, picture: Picture, *, await_state: bool = False, resend: bool = False) -> UploadStats:
        """Announce the picture and upload it.

        `await_state`: the server may have it, wholly or in part. Wait for its PictureState and send the rest only.
        `resend`: the server requested the picture again (NeedPicture). Send it at once. The announcement requests a
        PictureState too: a NeedPicture that arrives before this reply was sent before the server read the
        announcement, so it needs no other upload.
        """
        self._stats = stats = UploadStats(started_s=time.perf_counter())
        self._stop()
        self._failed = self._server_has_it = False
        self._state = asyncio.get_running_loop().create_future()
        if not (await_state or resend):
            self._state.set_result(pb.PictureState())
        self._in_flight.clear()
        self._unacknowledged = picture.n_views
        announcement = self._announcement(picture, want_state=await_state or resend)
        self._link.send(pictures=[announcement], hold=not await_state)
        self._task = asyncio.create_task(self._run(picture, await_state, stats))
        return stats

    async def _run(self, picture: Picture, await_state: bool, stats: UploadStats) -> None:
        try:
            state = await self._state if await_state else pb.PictureState()
            if state.complete:
                return
            on_server = {index for index in state.views if index < picture.n_views}
            self._unacknowledged -= len(on_server)
            missing = [index for index in range(picture.n_packets) if index not in on_server or picture.form]
            waiting: list[int] = []  # views that leave with a later one
            for index in range(picture.n_packets):
                if not waiting and index > max(missing, default=-1):
                    break
                encoded_before = index < len(picture.packets)
                encoded = await self._encoder.view(picture, index)
                self._check_size(encoded, picture)
                self._encoded_at = time.perf_counter()
                if picture.form:
                    await self._send_file(encoded.packet, state.image, stats)
                    stats.n_views = picture.n_views
                else:
                    waiting += [index] * (index not in on_server)
                    if waiting and encoded.joins:
                        await self._send_views(picture, waiting, encoded, stats)
                        waiting = []
                if not encoded_before:  # stats are kept as long as the link: without the packet, maybe a megabyte
                    stats.encoded_now.append(replace(encoded, packet=b"", joined=b""))
        except Exception as error:
            self._failed = True
            for queue in self.waiting:
                queue.put_nowait(error)

    async def _send_views(self, picture: Picture, missing: list[int], last: Encoded, stats: UploadStats) -> None:
        """Send the views `missing` of those that leave with `last`: in one packet, or singly if that is shorter.

        Views of that packet which the server has are sent again; the server drops them.
        """
        limits, first_of_all = self._link.limits, last.index + 1 - last.joins
        single_bytes = sum(len(picture.packets[index].packet) for index in missing)
        together = 1 < last.joins <= limits.views_per_packet and len(last.joined) <= limits.packet_bytes
        for first, packet, views in (
            [(first_of_all, last.joined, last.joins)]
            if together and len(last.joined) <= single_bytes
            else [(index, picture.packets[index].packet, 1) for index in missing]
        ):
            self._in_flight |= {index: int(index in missing) for index in range(first, first + views)}
            between = first > 0 and first + views < picture.n_views
            await self._link.send_view(self.ref, first, packet, views=views, hold=between)
            stats.n_bytes += len(packet)
            stats.n_views += views
            stats.last_packet_views = views

    async def _send_file(self, data: bytes, on_server: pb.ReceivedImage, stats: UploadStats) -> None:
        offset = start = _resume_at(data, on_server)
        self._unacknowledged = len(data) - start
        while offset < len(data):
            length = await self._link.send_chunk(self.ref, offset, data, first=offset == start)
            self._in_flight[offset] = length
            stats.n_bytes += length
            offset += length

    def _check_size(self, encoded: Encoded, picture: Picture) -> None:
        allowed = self._link.limits.image_bytes if picture.form else self._link.limits.packet_bytes
        if picture.form and len(encoded.packet) > allowed:
            raise LimitError(
                f"the picture takes {len(encoded.packet)} bytes as {picture.form.codec}, this server allows {allowed}; "
                "lower --quality or --scale",
                reason="IMAGE_TOO_LARGE",
            )
        if len(encoded.packet) > allowed:
            raise LimitError(
                f"a view takes {len(encoded.packet)} bytes, this server allows {allowed}; keep fewer features "
                "(--features N)",
                reason="PACKET_TOO_LARGE",
            )

    def abandon(self) -> None:
        """Stop, because no question waits for it any more; a later question starts it again."""
        if self.running:
            self._failed = True
            self._stop()

    def on_state(self, state: pb.PictureState) -> None:
        """Take the server's reply, which says what it has of the picture."""
        if not self._state.done():
            self._state.set_result(state)
        if state.complete:
            self._server_has_it = True
            self._stop()

    def on_ack(self, number: int) -> None:
        """Count a view (by index) or chunk (by offset) that arrived."""
        self.acknowledged += 1
        self._unacknowledged -= self._in_flight.pop(number, 0)
        if not self._in_flight:
            self._stats.ended_s = time.perf_counter()
            self._stats.upload_ms = (self._stats.ended_s - self._encoded_at) * 1e3

    def on_end(self) -> None:
        """Stop with the link."""
        self._stop()

    def _announcement(self, picture: Picture, *, want_state: bool) -> pb.Picture:
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
            want_state=want_state,
        )

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()


def _resume_at(data: bytes, on_server: pb.ReceivedImage) -> int:
    """Return the offset from which to send a file: after the part that the server has, if it is equal.

    The last byte is sent in any case: the server starts to decode when it arrives.
    """
    equal = on_server.bytes <= len(data) and zlib.crc32(data[: on_server.bytes]) == on_server.crc32
    return min(on_server.bytes, len(data) - 1) if equal else 0
