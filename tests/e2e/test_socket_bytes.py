"""The table of every byte on the socket: its parts sum to what the sockets carried."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.socket_bytes import CONTENT, FrameReader, fields, record, tables
from device_client.fake import FakeEncoder
from edge_server.fake import fake_backend
from edge_server.settings import ServerSettings
from tofc.model.views import ViewRule
from tofc.v1 import tofc_pb2 as pb

RULE = ViewRule(global_size=336, crop_size=224, max_side=1344)
PACKET = 80


async def test_every_byte_has_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("device_client.link.HOLD_S", 60.0)  # on a busy machine too
    paths = [tmp_path / f"{side}.png" for side in (300, 200, 500)]
    for path in paths:
        Image.linear_gradient("L").resize((int(path.stem),) * 2).convert("RGB").save(path)
    encoder = FakeEncoder(model_id="fake-model", codec_id="fake-codec", packet_bytes=PACKET, rule=RULE)
    settings = ServerSettings(model=Path("unused"), port=0, grace_s=0.0)
    steps, recorder = await record(settings, lambda _: fake_backend(lambda prompt: b"yes"), encoder, *paths)
    for side, reader in (("up", recorder.up), ("down", recorder.down)):
        assert reader.unread == 0
        assert sum(sum(step[side].values()) for step in steps.values()) == recorder.carried[side]
    one, crops = steps["a new picture of one view"]["up"], steps["a new picture in crops"]["up"]
    assert (one["packets"], crops["packets"]) == (PACKET, 10 * PACKET)
    assert one["DATA frame headers"] == 9, "picture, view and question leave together"
    assert set(CONTENT.values()) == {"packets", "text"}
    assert f"| packets |  | {PACKET} | {PACKET} |  | {10 * PACKET} |" in tables(steps)


def test_fields_sum_to_the_message() -> None:
    usage = pb.Usage(prompt_tokens=300, new_tokens=2)
    message = pb.SessionResponse(done=pb.Done(request=1, usage=usage, timing=pb.Timing(total_us=70_000)))
    parts = fields(pb.SessionResponse.DESCRIPTOR, message.SerializeToString())
    assert parts["Usage.prompt_tokens"] == 3 and parts["SessionResponse.done"] == 2
    assert parts.total() == message.ByteSize()


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_frames_are_read_however_they_arrive(size: int) -> None:
    message = pb.SessionResponse(token=pb.Token(request=1, text="yes")).SerializeToString()
    prefixed = b"\0" + len(message).to_bytes(4, "big") + message
    stream = b"".join(  # the message in two frames, then a ping
        len(payload).to_bytes(3, "big") + bytes([kind, 0, 0, 0, 0, 1]) + payload
        for kind, payload in ((0, prefixed[:8]), (0, prefixed[8:]), (6, bytes(8)))
    )
    reader = FrameReader(pb.SessionResponse.DESCRIPTOR, preface=False)
    for at in range(0, len(stream), size):
        reader.feed(stream[at : at + size])
    assert reader.parts.total() == len(stream) and reader.unread == 0
    assert (reader.parts["DATA frame headers"], reader.parts["PING"], reader.parts["text"]) == (18, 17, 3)
