"""`--mode image` from end to end: Pillow on the device, the shipped tower on the server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL.Image import Image

from device_client.encoder import TowerEncoder
from device_client.image_encoder import ImageEncoder
from device_client.link import Target
from device_client.picture import ImageForm
from device_client.report import Report
from device_client.session import Session
from edge_server.settings import IMAGE_BYTES, IMAGE_PIXELS, SessionLimits
from tests.e2e.conftest import MODEL, PICTURES, ROOT, ServerThread
from tests.e2e.test_answers import Asked, ask_all, in_one_process
from tofc.errors import LinkLostError, MismatchError
from tofc.model.image_codec import compress, decompress, missing
from tofc.model.open_image import open_image

EXAMPLE = MODEL / "example.jpg"
LARGE = "picture-11.jpg"


@pytest.fixture(scope="module")
def image_server() -> Iterator[ServerThread]:
    """Run a server that accepts images."""
    made = ServerThread(limits=SessionLimits(image_bytes=IMAGE_BYTES, image_pixels=IMAGE_PIXELS))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def some(asked: Asked) -> Asked:
    """Return two questions about each of three pictures, the large one last."""
    names = [*dict.fromkeys(line["image"] for line in asked if line["image"] != LARGE)][:2]
    return [line for name in (*names, LARGE) for line in [one for one in asked if one["image"] == name][:2]]


@pytest.mark.parametrize(
    ("codec", "quality", "scale"), [("jpeg", 60, 1.0), ("webp", 30, 0.7), ("avif", 50, 0.5), ("jxl", 60, 1.0)]
)
def test_answers_over_the_network_are_those_of_one_process(
    image_server: ServerThread, encoder: TowerEncoder, some: Asked, codec: str, quality: int, scale: float
) -> None:
    if missing(codec):
        pytest.skip(f"no {codec} in this Pillow")

    def sent(image: Image) -> Image:
        return decompress(compress(image, codec, quality, scale), codec, max_pixels=IMAGE_PIXELS)

    device = ImageEncoder.open(MODEL, ImageForm(codec=codec, quality=quality, scale=scale))
    some = some if codec == "jpeg" else some[:4]
    reports = asyncio.run(ask_all(image_server, device, some))
    assert [r.answer for r in reports] == in_one_process(encoder, some, compressed=False, sent=sent)
    first: dict[str, int] = {}
    for report, line in zip(reports, some, strict=True):
        if line["image"] not in first:
            picture = open_image(PICTURES / line["image"])
            assert report.bytes_picture == len(compress(picture, codec, quality, scale))
            assert report.bytes_up is None or report.bytes_up > report.bytes_picture
        else:
            assert report.bytes_picture == 0
        first.setdefault(line["image"], report.features)
        assert report.features == first[line["image"]]
    assert [*first.values()] == [36, 36, 6 * 16 + 36][: len(first)]


def test_a_file_of_high_quality_gives_the_answers_of_uncompressed_features(
    image_server: ServerThread, encoder: TowerEncoder, asked: Asked
) -> None:
    asked = [line for line in asked if line["image"] != LARGE][:16]
    reports = asyncio.run(ask_all(image_server, ImageEncoder.open(MODEL, ImageForm(codec="webp", quality=95)), asked))
    plain = in_one_process(encoder, asked, compressed=False)
    same = sum(report.answer == answer for report, answer in zip(reports, plain, strict=True))
    assert same >= 15


def test_both_modes_work_on_one_server(image_server: ServerThread, encoder: TowerEncoder) -> None:
    async def talk() -> list[Report]:
        target, image = Target(address=image_server.address), ImageEncoder.open(MODEL, ImageForm(quality=91))
        async with Session(target, encoder) as one, Session(target, image) as two:
            return [
                await session.ask([session.open(EXAMPLE)], "what number is on the sign?").result()
                for session in (one, two, one, two)
            ]

    reports = asyncio.run(talk())
    assert [report.mode for report in reports] == ["features", "image"] * 2
    assert [bool(report.bytes_picture) for report in reports] == [True, True, False, False]
    assert reports[1].bytes_picture > 10 * reports[0].bytes_picture
    assert {report.answer for report in reports} == {"42"}


def test_a_dropped_picture_is_sent_again_and_a_lost_link_needs_no_upload(image_server: ServerThread) -> None:
    async def forget() -> None:
        pictures = image_server.running.service.pictures
        for picture in list(pictures._pictures.values()):
            pictures._drop(picture)

    async def talk() -> list[Report]:
        async with Session(
            Target(address=image_server.address), ImageEncoder.open(MODEL, ImageForm(quality=50))
        ) as session:
            picture = session.open(EXAMPLE)
            question = "what number is on the sign?"
            reports = [await session.ask([picture], question).result()]
            await asyncio.to_thread(image_server.run, forget())
            reports.append(await session.ask([picture], question).result())  # NeedPicture
            assert session._connection.current is not None
            session._connection.current.end(LinkLostError("cut here"))
            reports.append(await session.ask([picture], question).result())  # the server still has it
            return reports

    reports = asyncio.run(talk())
    assert {report.answer for report in reports} == {"42"}
    sizes = [report.bytes_picture for report in reports]
    assert sizes[0] == sizes[1] > 0 == sizes[2]


def test_a_server_without_image_mode_says_how_to_start_one(server: ServerThread) -> None:
    with pytest.raises(MismatchError, match="edge-server serve --take-images"):
        asyncio.run(
            ask_all(
                server,
                ImageEncoder.open(MODEL, ImageForm()),
                [{"image": "picture-01.jpg", "question": "what is this?", "answer": ""}],
            )
        )


def test_the_command_needs_no_torch_and_no_tower(image_server: ServerThread, tmp_path: Path) -> None:
    half = tmp_path / "device"  # the configuration and the ids of a device half, no tensors
    half.mkdir()
    (half / "config.json").write_bytes((MODEL / "config.json").read_bytes())
    origin = ImageEncoder.open(MODEL, ImageForm())
    mark = {"format": 1, "side": "device", "model_id": origin.model_id, "codec_id": origin.codec_id}
    (half / "split.json").write_text(json.dumps(mark))
    script = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = sys.modules['safetensors'] = None\n"
        "from device_client.cli import app; app()"
    )
    words = ["ask", EXAMPLE, "-q", "what number is on the sign?", "-q", "is there a rocket?", "--json"]
    words += [
        "--mode",
        "image",
        "--codec",
        "avif",
        "--quality",
        "60",
        "--server",
        image_server.address,
        "--model",
        tmp_path,
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["answer"], first["mode"], first["image_codec"], first["image_quality"]) == ("42", "image", "avif", 60)
    assert first["bytes_picture"] == len(compress(open_image(EXAMPLE), "avif", 60)) and first["image_scale"] == 1
    assert second["bytes_picture"] == 0 and second["answer"] in ("yes", "no")
    assert first["timings"]["tower"] == 0 < first["timings"]["server_decode"]
