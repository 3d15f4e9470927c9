"""Views that leave together, as the device sends them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from PIL import Image

from device_client.fake import FakeEncoder
from tests.client.conftest import Begin, FakeServer

PACKET = 10
SAVED = 4  # bytes by each view after the first of a packet


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Draw a picture of 9 crops and the global view."""
    path = tmp_path / "large.png"
    Image.linear_gradient("L").resize((660, 660)).convert("RGB").save(path)
    return path


def sent(server: FakeServer, saved: int = 0) -> list[tuple[int, int]]:
    """Return the first view and the number of views of each packet, in the order in which they came."""
    packets = [(view.index, view.views or 1) for view in server.received("view")]
    sizes = [len(view.packets[0]) for view in server.received("view")]
    assert sizes == [PACKET * views - saved * (views - 1) for _, views in packets]
    return packets


def together(views: int) -> FakeEncoder:
    return FakeEncoder(packet_bytes=PACKET, views_per_packet=views)


@pytest.mark.parametrize(
    ("views", "limits", "packets"),
    [
        (4, {"views_per_packet": 64}, [(0, 4), (4, 4), (8, 2)]),
        (64, {"views_per_packet": 64}, [(0, 10)]),
        (1, {"views_per_packet": 64}, [(index, 1) for index in range(10)]),
        (4, {}, [(index, 1) for index in range(10)]),  # a server that does not know packets of several views
        (4, {"views_per_packet": 3}, [*((index, 1) for index in range(8)), (8, 2)]),
        (4, {"views_per_packet": 64, "packet_bytes": 3 * PACKET}, [*((index, 1) for index in range(8)), (8, 2)]),
    ],
)
async def test_views_leave_together_as_far_as_the_server_allows(
    views: int,
    limits: dict[str, int],
    packets: list[tuple[int, int]],
    large: Path,
    server: FakeServer,
    begin: Begin,
) -> None:
    for name, value in limits.items():
        setattr(server.limits, name, value)
    session = begin(together(views))
    report = await session.ask([session.open(large)], "?").result()
    assert sent(server) == packets
    assert (report.views_sent, report.bytes_picture) == (10, 10 * PACKET)


@pytest.mark.parametrize(
    ("there", "limits", "packets"),
    [
        ({1}, {}, [(0, 4), (4, 4), (8, 2)]),  # together again, because three single ones take more bytes
        ({3}, {}, [(0, 4), (4, 4), (8, 2)]),
        ({0, 1, 2, 3}, {}, [(4, 4), (8, 2)]),
        ({4, 5, 6, 7, 8, 9}, {}, [(0, 4)]),
        ({3, 4, 5, 6, 7, 8, 9}, {}, [(0, 4)]),
        ({2, 3, 4, 5, 6, 7, 8, 9}, {}, [(0, 1), (1, 1)]),
        ({3, 4, 5, 6, 7, 8, 9}, {"views_per_packet": 3}, [(0, 1), (1, 1), (2, 1)]),
        ({3, 4, 5, 6, 7, 8, 9}, {"packet_bytes": 2 * PACKET}, [(0, 1), (1, 1), (2, 1)]),
    ],
)
async def test_after_a_lost_link_what_is_missing_is_sent_in_the_fewest_bytes(
    there: set[int],
    limits: dict[str, int],
    packets: list[tuple[int, int]],
    large: Path,
    server: FakeServer,
    begin: Begin,
) -> None:
    server.limits.views_per_packet, server.lose = 64, [0]
    for name, value in limits.items():
        setattr(server.limits, name, value)
    server.answering.clear()
    session = begin(FakeEncoder(packet_bytes=PACKET, views_per_packet=4, saved_bytes=SAVED))
    question = session.ask([session.open(large)], "?")
    answer = asyncio.create_task(question.result())
    await server.until(lambda: sum(views for _, views in sent(server, SAVED)) == 10)
    (picture_id,) = server.stored
    before, server.stored[picture_id] = len(sent(server, SAVED)), set(there)
    server.answering.set()
    assert (await answer).reconnects == 1
    assert sent(server, SAVED)[before:] == packets
