"""`--mode image` on the device: what is sent, what it is said to cost, and what is refused before it is sent."""

from __future__ import annotations

import asyncio
import hashlib
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from device_client.fake import FakeEncoder
from device_client.image_encoder import ImageEncoder
from device_client.link import VIEWS_IN_FLIGHT
from device_client.picture import ImageForm, open_picture, picture_id
from device_client.render import cost_line
from tests.client.conftest import Begin, FakeServer
from tofc.errors import EncoderError, ImageCodecError, LimitError, LinkLostError, MismatchError
from tofc.model.image_codec import compress, size_of
from tofc.model.open_image import open_image
from tofc.rpc.channel import CHUNK_BYTES
from tofc.v1 import tofc_pb2 as pb


def encoder(**form: Any) -> ImageEncoder:
    fake = FakeEncoder()
    return ImageEncoder(model_id=fake.model_id, codec_id=fake.codec_id, rule=fake.rule, form=ImageForm(**form))


@pytest.fixture(autouse=True)
def taking(server: FakeServer) -> None:
    """The fake server takes images."""
    server.limits.image_bytes, server.limits.image_pixels = 4_000_000, 2_000_000


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A picture of one view that no codec makes small."""
    pixels = np.random.default_rng(1).integers(0, 256, (320, 320, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


async def test_the_file_arrives_and_is_counted(server: FakeServer, begin: Begin, wide: Path) -> None:
    session = begin(encoder(codec="webp", quality=40, scale=0.5))
    answer = session.ask([session.open(wide)], "is it grey?")
    report = await answer.result()
    data = compress(open_image(wide), "webp", 40, 0.5)
    assert server.kinds() == ["hello", "picture", "image_chunk", "ask"] and server.files[1] == data
    (announced,) = server.received("picture")
    assert (announced.image.width, announced.image.height) == size_of(data, "webp") == (560, 448)
    assert announced.image.format == pb.IMAGE_FORMAT_WEBP and (announced.rows, announced.columns) == (2, 3)
    assert (report.bytes_picture, report.views, report.views_sent) == (len(data), 7, 7)
    assert (report.mode, report.image_codec, report.image_quality, report.image_scale) == ("image", "webp", 40, 0.5)
    assert report.timings["tower"] == 0 < report.timings["encode"]
    if report.bytes_up is not None:
        assert len(data) < report.bytes_up < len(data) + 1500
    assert "as webp, quality 40, scale 0.5, 7 views" in cost_line(report, None)
    again = await session.ask([session.open(wide)], "again?").result()
    assert (again.bytes_picture, again.views_sent) == (0, 0)


async def test_packets_say_that_they_are_packets(server: FakeServer, begin: Begin, small: Path) -> None:
    session = begin()
    report = await session.ask([session.open(small)], "well?").result()
    assert (report.mode, report.image_codec) == ("features", None)
    assert not server.received("picture")[0].HasField("image")


async def test_a_large_file_goes_in_chunks_of_which_few_are_unacknowledged(
    server: FakeServer, begin: Begin, noise: Path
) -> None:
    session = begin(encoder(quality=100))
    report = await session.ask([session.open(noise)], "what?").result()
    chunks = server.received("image_chunk")
    assert len(chunks) > 2 and all(len(chunk.data) <= CHUNK_BYTES for chunk in chunks)
    assert [chunk.total for chunk in chunks] == [report.bytes_picture, *[0] * (len(chunks) - 1)]
    assert len(server.files[1]) == report.bytes_picture
    assert session._connection.current is not None and session._connection.current._view_slots._value == VIEWS_IN_FLIGHT
    assert report.timings["upload"] > 0


@pytest.mark.parametrize("damaged", [False, True])
async def test_a_file_continues_after_a_lost_link_where_the_server_has_the_same(
    damaged: bool, server: FakeServer, begin: Begin, noise: Path
) -> None:
    server.cut_at = CHUNK_BYTES
    there: list[int] = []

    async def meanwhile(_: float) -> None:
        there.append(len(server.files[1]))
        if damaged:  # by whoever sent it
            server.files[1] = bytes(there[0])

    session = begin(encoder(quality=100), sleep=meanwhile)
    picture = session.open(noise)
    report = await session.ask([picture], "still there?").result()
    assert (report.answer, report.reconnects) == ("yes to still there?", 1)
    whole = picture.packets[0].packet
    assert server.files[1] == whole
    second = [chunk for number, kind, chunk in server.requests if kind == "image_chunk" and number == 2]
    assert second[0].total == len(whole)
    assert second[0].offset == (0 if damaged else there[0]) < CHUNK_BYTES
    assert report.bytes_picture > len(whole), "what was sent in vain counts too"


async def test_a_forgotten_file_is_sent_again_and_not_compressed_again(
    server: FakeServer, begin: Begin, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []

    def count(*given: Any) -> bytes:
        made.append(given)
        return compress(*given)

    monkeypatch.setattr("device_client.image_encoder.compress", count)
    session = begin(encoder())
    picture = session.open(small)
    first = await session.ask([picture], "one").result()
    server.stored.clear()
    second = await session.ask([picture], "two").result()
    assert first.bytes_picture == second.bytes_picture > 0 and len(made) == 1
    assert session._connection.current is not None
    session._connection.current.end(LinkLostError("cut here"))
    third = await session.ask([picture], "three").result()  # the server has it still
    assert (third.bytes_picture, server.kinds(2)) == (0, ["hello", "picture", "ask"])


async def test_a_file_given_up_half_way_begins_again(server: FakeServer, begin: Begin, noise: Path) -> None:
    server.answering.clear()
    session = begin(encoder(quality=100))
    picture = session.open(noise)
    asking = asyncio.create_task(session.ask([picture], "never mind").result())
    await server.until(lambda: "image_chunk" in server.kinds())
    asking.cancel()
    await asyncio.wait([asking])
    server.answering.set()
    report = await session.ask([picture], "well?").result()
    assert report.answer == "yes to well?" and len(server.files[1]) == len(picture.packets[0].packet)


async def test_a_server_that_takes_none(server: FakeServer, begin: Begin, small: Path) -> None:
    server.limits.ClearField("image_bytes")
    server.limits.ClearField("image_pixels")
    session = begin(encoder())
    with pytest.raises(MismatchError, match="start it with `edge-server serve --take-images`") as refused:
        await session.ask([session.open(small)], "what?").result()
    assert refused.value.reason == "IMAGES_NOT_TAKEN" and server.kinds() == ["hello"]


async def test_limits_are_checked_before_sending(server: FakeServer, begin: Begin, small: Path) -> None:
    session = begin(encoder())
    server.limits.image_bytes = 100
    with pytest.raises(LimitError, match=r"as jpeg, this server allows 100; lower --quality or --scale"):
        await session.ask([session.open(small)], "what?").result()
    server.limits.image_pixels = 200 * 160 - 1
    session = begin(encoder())
    with pytest.raises(LimitError, match=r"32000 pixels of one picture, this server allows 31999; lower --scale"):
        await session.ask([session.open(small)], "what?").result()
    assert "image_chunk" not in server.kinds()


async def test_a_sliver_counts_as_the_square_that_it_is_padded_to(
    server: FakeServer, begin: Begin, tmp_path: Path
) -> None:
    server.limits.image_pixels = 350_000
    Image.new("RGB", (20, 600)).save(tmp_path / "narrow.png")
    session = begin(encoder())
    with pytest.raises(
        LimitError, match=r"360000 pixels of one picture, padded to a square, this server allows 350000"
    ):
        await session.ask([session.open(tmp_path / "narrow.png")], "what?").result()
    session = begin(encoder(scale=0.5))
    assert (await session.ask([session.open(tmp_path / "narrow.png")], "what?").result()).answer == "yes to what?"


def test_a_file_that_is_gone_by_now_has_no_size(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(path: Path) -> Image.Image:
        found = open_image(path)
        path.unlink()
        return found

    monkeypatch.setattr("device_client.picture.open_image", opened)
    assert open_picture(small, FakeEncoder().rule, "codec", "").file_bytes is None


def test_equal_pixels_have_the_id_they_always_had() -> None:
    image = Image.effect_mandelbrot((1500, 900), (-2, -1, 1, 1), 50).convert("RGB")
    whole = hashlib.sha256(b"tofc picture codec setting" + struct.pack("<II", 1500, 900) + image.tobytes())
    assert picture_id(image, "codec", "setting") == whole.digest()[:16]


def test_modes_and_settings_never_share_an_id(small: Path) -> None:
    image = open_image(small)
    forms: list[dict[str, Any]] = [{}, {"codec": "webp"}, {"quality": 74}, {"scale": 0.5}, {"scale": 0.50001}]
    settings = ["", *(encoder(**form).setting for form in forms)]
    assert len({picture_id(image, "codec", setting) for setting in settings}) == len(settings)
    assert picture_id(image, "codec", "") != picture_id(image, "other", "")


def test_a_picture_that_a_codec_cannot_hold(tmp_path: Path) -> None:
    Image.new("RGB", (16_400, 600)).save(tmp_path / "long.png")
    made = encoder(codec="webp")
    with pytest.raises(EncoderError, match="webp holds at most 16383 px a side"):
        list(made.encode(open_image(tmp_path / "long.png")))


def test_jpeg_xl_missing_on_the_device(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(ImageCodecError, match="pip install pillow-jxl-plugin"):
        encoder(codec="jxl")


def test_the_layout_is_that_of_the_scaled_picture(wide: Path) -> None:
    rule = FakeEncoder().rule
    assert open_picture(wide, rule, "codec", "").n_views == 21
    small = open_picture(wide, rule, "codec", "", ImageForm(scale=0.25))
    assert (small.n_views, small.n_packets, small.form_size) == (1, 1, (280, 224))
