"""`--mode auto`: which way is taken for measured speeds, what is said of it, and what a picture that was sent stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from device_client.auto_encoder import AutoEncoder
from device_client.equal_files import EqualFiles, read_equal_files
from device_client.estimates import KEPT, DeviceEstimates, Figure, LinkEstimates, Measured, Opening, ServerEstimates
from device_client.fake import FakeEncoder
from device_client.mode_choice import MEASURE_AGAIN_AFTER
from device_client.picture import ImageForm, Picture
from device_client.render import cost_line
from device_client.session import Session
from tests.client.conftest import Begin, FakeServer
from tofc.errors import CheckpointError, LinkLostError
from tofc.model.feature_codecs import IMAGE_FILES
from tofc.model.image_codec import compress
from tofc.model.open_image import open_image

FORM = ImageForm(codec="webp", quality=45, scale=0.5)
MEGAPIXELS = 336 * 336 / 1e6


@pytest.fixture
def taking(server: FakeServer) -> None:
    """The fake server takes images."""
    server.limits.image_bytes, server.limits.image_pixels = 4_000_000, 2_000_000


def auto(files: EqualFiles | None = None) -> AutoEncoder:
    files = EqualFiles(one_view=FORM, crops=FORM) if files is None else files
    return AutoEncoder(FakeEncoder(), files, no_files="no file is known")


def seen(*, device_ms: float, n_bytes: int = 22, upload_ms: float, server_ms: float, first_ms: float) -> Measured:
    return Measured(
        views=1,
        last_packet_views=1,
        megapixels=MEGAPIXELS,
        device_ms=device_ms,
        n_bytes=n_bytes,
        upload_ms=upload_ms,
        server_ms=server_ms,
        first_token_ms=first_ms,
    )


def test_the_decoding_of_the_whole_last_packet_is_no_part_of_the_round_trip() -> None:
    made = LinkEstimates(Opening(ms=240, n_bytes=4500), DeviceEstimates(), ServerEstimates())
    took = seen(device_ms=900, upload_ms=60 + 8 * 10, server_ms=10 * 10, first_ms=1000)
    made.add_features(replace(took, views=10, last_packet_views=8))
    assert made.round_trip_ms == pytest.approx(60)


async def test_the_views_of_the_last_packet_are_learnt(server: FakeServer, begin: Begin, wide: Path) -> None:
    server.limits.views_per_packet = 64
    session = begin(AutoEncoder(FakeEncoder(views_per_packet=8), EqualFiles(), no_files="no file is known"))
    await session.ask([session.open(wide)], "what?").result()
    assert session._choice is not None and session._choice._estimates is not None
    (learnt,) = session._choice._estimates._seen_features
    assert (learnt.views, learnt.last_packet_views) == (21, 5)


def estimates(opening: Opening, *, device_ms: float, round_trip_ms: float) -> LinkEstimates:
    """A link on which a picture was sent as features."""
    made = LinkEstimates(opening, DeviceEstimates(), ServerEstimates())
    first_ms = device_ms + round_trip_ms + 10 + 15
    made.add_features(seen(device_ms=device_ms, upload_ms=round_trip_ms + 10, server_ms=10, first_ms=first_ms))
    return made


def test_a_time_is_the_lower_quartile_of_the_last_measurements_and_a_link_the_median_of_three() -> None:
    figure, link = Figure(), Figure(3, part=2)
    assert figure.value is None and figure.or_else(7.0) == 7.0
    for value in (1, 50, 20, 900, 40, 30, 1000, 60, 70):
        figure.add(value)
        link.add(value)
    assert figure.value == 30, "of 20, 30, 40, 50, 60, 70, 900, 1000"
    assert link.value == 70, "of 60, 70, 1000"


def test_features_are_predicted_as_they_were_measured() -> None:
    made = estimates(Opening(ms=240, n_bytes=4500), device_ms=90, round_trip_ms=60)
    assert made.features_ms(1) == pytest.approx(90 + 60 + 10 + 15)
    assert made.features_ms(7) == pytest.approx(7 * (90 + 10) + 60 + 15)


@pytest.mark.parametrize(
    ("opening_ms", "device_ms", "round_trip_ms", "file_first"),
    [
        (4 * 60 + 15 + 180, 90, 60, False),  # 25 KB/s: the file would take 90 ms longer than its server saves
        (4 * 20 + 15 + 4, 90, 20, True),  # 1 MB/s, a usual device: worth trying once
        (4 * 60 + 15 + 180, 500, 60, True),  # 25 KB/s, a weak device
        (4 * 1000 + 15 + 15_000, 500, 1000, False),  # 300 B/s: even a weak device is faster than the link
    ],
)
def test_a_file_is_tried_only_where_it_may_be_sooner(
    opening_ms: float, device_ms: float, round_trip_ms: float, file_first: bool
) -> None:
    made = estimates(Opening(ms=opening_ms, n_bytes=4500), device_ms=device_ms, round_trip_ms=round_trip_ms)
    features_ms = made.features_ms(1)
    assert features_ms is not None and (made.file_ms(1, MEGAPIXELS) < features_ms) == file_first


def test_a_file_is_predicted_as_it_was_measured() -> None:
    made = estimates(Opening(ms=100, n_bytes=4500), device_ms=90, round_trip_ms=60)
    made.add_file(seen(device_ms=6, n_bytes=2200, upload_ms=60 + 88, server_ms=75, first_ms=6 + 88 + 75 + 80))
    assert made.file_was_sent and made.ms_per_byte == pytest.approx(88 / 2200)
    assert made.file_ms(1, MEGAPIXELS) == pytest.approx(6 + 88 + 75 + 80)


async def test_the_first_picture_goes_as_features_because_nothing_is_measured(
    server: FakeServer, begin: Begin, small: Path, taking: None
) -> None:
    session = begin(auto())
    report = await session.ask([session.open(small)], "what?").result()
    assert (report.mode, report.auto) == (
        "features",
        {"mode": "features", "why": "nothing is measured yet", "features_ms": None, "image_ms": None},
    )
    assert report.to_json()["auto"]["why"] == "nothing is measured yet"
    assert "auto: features, nothing is measured yet" in cost_line(report, None)


async def test_a_server_without_images_gets_features_and_the_reason_says_so(
    server: FakeServer, begin: Begin, small: Path
) -> None:
    session = begin(auto())
    report = await session.ask([session.open(small)], "what?").result()
    assert report.mode == "features" and report.auto is not None
    assert report.auto["why"] == "the server takes no image files (edge-server serve --take-images)"


async def test_a_model_without_equal_files_sends_features(
    server: FakeServer, begin: Begin, small: Path, taking: None
) -> None:
    session = begin(auto(EqualFiles()))
    report = await session.ask([session.open(small)], "what?").result()
    assert report.auto is not None and (report.mode, report.auto["why"]) == ("features", "no file is known")


def test_a_picture_that_is_too_narrow_has_no_file() -> None:
    narrow = Picture(source="", image=None, picture_id=bytes(16), rows=0, columns=0, size=(20_000, 100))
    assert auto().plan_file(narrow) is None


async def test_a_picture_that_cannot_be_sent_as_a_file_goes_as_features(
    server: FakeServer, begin: Begin, small: Path, taking: None
) -> None:
    server.limits.image_pixels = 100
    session = begin(auto())
    report = await session.ask([session.open(small)], "what?").result()
    assert report.auto is not None and report.mode == "features" and "too narrow, or has more" in report.auto["why"]


async def slow_device(session: Session, small: Path) -> None:
    """Ask once, and have the session believe that the device took ten seconds."""
    await session.ask([session.open(small)], "first?").result()
    choice, link = session._choice, session._connection.current
    assert choice is not None and link is not None
    for _ in range(KEPT):
        choice.learn("features", seen(device_ms=1e4, upload_ms=9, server_ms=1, first_ms=1e4 + 9), link)


async def test_a_slow_device_sends_the_file_once_and_remembers(
    server: FakeServer, begin: Begin, small: Path, wide: Path, taking: None
) -> None:
    session = begin(auto())
    await slow_device(session, small)
    picture = session.open(wide)
    report = await session.ask([picture], "what?").result()
    data = compress(open_image(wide), "webp", 45, 0.5)
    assert server.files[2] == data and report.auto is not None
    assert (report.mode, report.image_codec, report.bytes_picture) == ("image", "webp", len(data))
    assert report.feature_codec is None and report.auto["image_ms"] < report.auto["features_ms"]
    assert "a round trip of" in report.auto["why"]
    assert picture.image is None, "the file has its pixels, until it is made"
    again = await session.ask([picture], "again?").result()
    assert (again.bytes_picture, again.mode) == (0, "image") and again.auto is not None
    assert again.auto["why"] == "the pictures were encoded in this way for an earlier question"


async def test_a_picture_that_went_as_features_stays_so_beside_a_new_file(
    server: FakeServer, begin: Begin, small: Path, wide: Path, taking: None
) -> None:
    session = begin(auto())
    old = session.open(small)
    await session.ask([old], "what?").result()
    await slow_device(session, small)
    report = await session.ask([old, session.open(wide)], "both?").result()
    assert report.mode == "mixed" and (report.views, report.views_sent) == (1 + 7, 7)
    assert report.feature_codec is not None and report.image_codec == "webp"


async def test_a_picture_whose_features_wait_for_the_encoder_stays_so(
    server: FakeServer, begin: Begin, small: Path, wide: Path, taking: None
) -> None:
    session = begin(auto())
    await session.connect()
    choice, link = session._choice, session._connection.current
    assert choice is not None and link is not None
    picture = session.open(wide)
    assert choice.choose([picture], link)[1].mode == "features"
    await slow_device(session, small)
    assert choice.choose([session.open(wide)], link)[1].mode == "image", "a new one goes as a file by now"
    sent, decision = choice.choose([picture], link)
    assert (sent, decision.mode) == ([picture], "features") and picture.image is not None


async def test_after_a_move_to_a_server_without_images_the_picture_goes_as_features(
    server: FakeServer, begin: Begin, small: Path, wide: Path, taking: None
) -> None:
    session = begin(auto())
    await slow_device(session, small)
    picture = session.open(wide)
    assert (await session.ask([picture], "what?").result()).mode == "image"
    server.limits.image_bytes = server.limits.image_pixels = 0
    assert session._connection.current is not None
    session._connection.current.end(LinkLostError("cut here"))
    report = await session.ask([picture], "and now?").result()
    assert (report.answer, report.mode, report.views_sent) == ("yes to and now?", "features", picture.n_views)


async def test_one_slow_picture_is_measured_again_soon(
    server: FakeServer, begin: Begin, tmp_path: Path, taking: None
) -> None:
    picture = tmp_path / "336.png"
    Image.new("RGB", (336, 336)).save(picture)
    session = begin(auto())
    await session.connect()
    choice, link = session._choice, session._connection.current
    assert choice is not None and link is not None
    taken = []
    for device_ms in (140, 100, 100, 100, 100, 100):  # of each picture, if it goes as features
        _, decision = choice.choose([session.open(picture)], link)
        taken.append(decision.mode)
        if decision.mode == "features":
            took = seen(device_ms=device_ms, upload_ms=30, server_ms=10, first_ms=device_ms + 50)
        else:
            took = seen(device_ms=6, n_bytes=2200, upload_ms=40, server_ms=95, first_ms=165)
        choice.learn(decision.mode, took, link)
    assert taken == ["features", "image", "image", "features", "features", "features"]


async def test_the_other_way_is_measured_again_where_it_was_close(
    server: FakeServer, begin: Begin, tmp_path: Path, taking: None
) -> None:
    small = tmp_path / "336.png"
    Image.new("RGB", (336, 336)).save(small)
    session = begin(auto())
    await session.ask([session.open(small)], "first?").result()
    choice, link = session._choice, session._connection.current
    assert choice is not None and link is not None
    for _ in range(5):
        choice.learn("features", seen(device_ms=100, upload_ms=30, server_ms=10, first_ms=150), link)
        choice.learn("image", seen(device_ms=6, n_bytes=2200, upload_ms=40, server_ms=90, first_ms=160), link)
    taken = []
    for _ in range(MEASURE_AGAIN_AFTER + 1):
        _, decision = choice.choose([session.open(small)], link)
        taken.append(decision.mode)
        if decision.mode == "features":
            choice.learn("features", seen(device_ms=100, upload_ms=30, server_ms=10, first_ms=150), link)
    assert taken == ["features"] * MEASURE_AGAIN_AFTER + ["image"]
    assert decision.why == f"measured again: it was close {MEASURE_AGAIN_AFTER} pictures ago"


def test_a_damaged_list_of_files_is_refused_by_name(tmp_path: Path) -> None:
    assert read_equal_files(tmp_path, "high").form(1) is None
    (tmp_path / IMAGE_FILES).write_text(
        '{"presets": {"high": {"one_view": {"codec": "gif", "quality": 3, "scale": 1}}}}'
    )
    with pytest.raises(
        CheckpointError, match=r"image_files.json is damaged \(.*codec must be one of jpeg.*image-files"
    ):
        read_equal_files(tmp_path, "high")
    assert read_equal_files(tmp_path, "low").form(1) is None
