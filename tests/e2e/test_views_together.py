"""Views of a large picture that leave in one packet: the same answers for fewer bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from PIL import Image

from device_client.encoder import TowerEncoder
from device_client.link import Target
from device_client.rate import RateChoice
from device_client.session import Session
from tests.e2e.conftest import ServerThread
from tofc.model.shipped import NANO


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Draw a picture of 9 crops and the global view."""
    path = tmp_path / "large.png"
    with Image.open(NANO / "example.jpg") as example:
        example.resize((660, 660)).save(path)
    return path


async def test_answers_are_the_same_for_fewer_bytes(server: ServerThread, large: Path) -> None:
    questions, found = ["what is in the picture?", "how many cats are there?", "is there a dog?"], {}
    for together in (1, 4, 64):
        encoder = TowerEncoder.open(NANO, RateChoice(views_per_packet=together))
        async with Session(Target(address=server.address), encoder) as session:
            picture = session.open(large)
            # so that the server takes them for different pictures
            picture.picture_id = hashlib.sha256(bytes([together])).digest()[:16]
            reports = [await session.ask([picture], question).result() for question in questions]
        found[together] = reports[0].bytes_picture, [report.answer for report in reports]
        assert (reports[0].views_sent, reports[1].views_sent) == (10, 0)
    assert found[1][1] == found[4][1] == found[64][1]
    assert 10 < found[64][0] < found[4][0] < found[1][0]
