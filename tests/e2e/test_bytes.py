"""The bytes of a question on the socket, between the real client and a real server, with fake packets."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from PIL import Image

from device_client.fake import FakeEncoder
from device_client.link import Target
from device_client.meter import Traffic, tcp_bytes
from device_client.report import Report
from device_client.session import Session
from edge_server import credentials
from edge_server.fake import fake_backend
from edge_server.reasoning import ThinkTokens
from edge_server.server import start
from edge_server.settings import ServerSettings
from tests.client.test_meter import linux
from tofc.model.views import ViewRule
from tofc.rpc.security import ClientSecurity, read_token

pytestmark = linux
RULE = ViewRule(global_size=336, crop_size=224, max_side=1344)
QUESTION = "is there a rocket?"
# Every message has an HTTP/2 frame header (9) and gRPC's prefix (5). What is sent before anything new is received has
# one window update of the stream (13).
FRAME, UPDATE = 14, 13
ASK = 4  # around the text: headers of the part and of the text
AFTER = 2  # the number of the question before
ANNOUNCEMENT = 12  # headers of the part and of the id, 8 bytes of the picture's id
VIEWS = 2  # the header of the part that has packets
VIEW = 2  # the header of a packet
LAYOUT = 4  # rows and columns of a picture of several views
RETRANSMITTED_AT = 208  # offset of tcpi_bytes_retrans in struct tcp_info
SESSION = 400  # preface, settings, headers, Hello
RECORD = 22  # of TLS, around what is written at once
HANDSHAKE = 2200  # of TLS, and the token; 1 216 of it are gRPC's post-quantum key
CERTIFICATE = 380  # of a server that has one name


@pytest.fixture(autouse=True)
def retransmissions_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subtract them: on a busy machine acknowledgements come late, and the kernel sends segments twice."""

    def without_retransmissions(connected: socket.socket) -> Traffic | None:
        traffic = tcp_bytes(connected)
        (repeated,) = struct.unpack_from(
            "<Q", connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), RETRANSMITTED_AT
        )
        return traffic and replace(traffic, up=traffic.up - repeated)

    monkeypatch.setattr("device_client.meter.tcp_bytes", without_retransmissions)


@pytest.fixture(autouse=True)
def parts_wait_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait on a busy machine too, where the fake encoder may take longer than parts are held."""
    monkeypatch.setattr("device_client.link.HOLD_S", 60.0)


@pytest_asyncio.fixture
async def session() -> AsyncIterator[Session]:
    """Open a session between a device and a server without models."""
    backend = fake_backend(lambda prompt: b"yes", think_tokens=ThinkTokens(begin=256, end=257))
    server = await start(ServerSettings(model=Path("unused"), port=0, grace_s=0.0), lambda _: backend)
    encoder = FakeEncoder(model_id="fake-model", codec_id="fake-codec", packet_bytes=80, rule=RULE)
    async with Session(Target(address=server.address), encoder) as made:
        yield made
    await server.stop()


def picture(folder: Path, side: int) -> Path:
    path = folder / f"{side}.png"
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(path)
    return path


def up(report: Report) -> int:
    """Return the bytes sent that are neither packets nor the question's text."""
    assert report.answer == "yes" and report.bytes_up is not None
    return report.bytes_up - report.bytes_picture - len(report.question)


async def test_a_picture_costs_little_beside_its_packet(session: Session, tmp_path: Path) -> None:
    first = up(await session.ask([], QUESTION).result())
    assert first <= SESSION
    seen = session.open(picture(tmp_path, 300))
    new = await session.ask([seen], QUESTION).result()
    assert (new.bytes_picture, new.views_sent) == (80, 1)
    assert up(new) <= UPDATE + FRAME + ANNOUNCEMENT + ASK + VIEWS + VIEW
    again = await session.ask([seen], "and a dog?").result()
    assert again.bytes_picture == 0
    assert up(again) <= UPDATE + FRAME + ASK


async def test_a_view_costs_little_beside_its_packet(session: Session, tmp_path: Path) -> None:
    await session.ask([], QUESTION).result()
    report = await session.ask([session.open(picture(tmp_path, 600))], QUESTION).result()
    assert report.views_sent > 8  # more than may be unacknowledged
    # The first view leaves alone, the others when 8 are unacknowledged, and whenever 4 of them are acknowledged.
    messages = 3 + report.views_sent // 4
    views = report.views_sent * VIEW + messages * (FRAME + VIEWS)
    # Views are acknowledged four at a time; each receipt, also the end of the question before, may cause two updates.
    updates = UPDATE * 2 * (1 + report.views_sent // 4)
    assert up(report) <= ANNOUNCEMENT + LAYOUT + ASK + views + updates


async def test_tls_adds_a_handshake_and_a_record_for_each_write(tmp_path: Path) -> None:
    files = credentials.write(tmp_path, ["localhost"])
    served = {"tls_cert": files.certificate, "tls_key": files.key, "token_file": files.token}
    backend = fake_backend(lambda prompt: b"yes")
    server = await start(ServerSettings(model=Path("unused"), port=0, grace_s=0.0, **served), lambda _: backend)
    security = ClientSecurity(ca=files.ca.read_bytes(), token=read_token(files.client_token))
    encoder = FakeEncoder(model_id="fake-model", codec_id="fake-codec", rule=RULE)
    async with Session(Target(address=f"localhost:{server.port}", security=security), encoder) as session:
        first = up(await session.ask([], QUESTION).result())
        again = up(await session.ask([], QUESTION).result())
    await server.stop()
    assert SESSION < first <= SESSION + HANDSHAKE
    assert again <= UPDATE + FRAME + ASK + RECORD
    assert len(x509.load_pem_x509_certificate(files.certificate.read_bytes()).public_bytes(Encoding.DER)) <= CERTIFICATE


async def test_earlier_turns_are_not_sent_again(session: Session) -> None:
    history: list[tuple[str, str]] = []
    for number in range(4):
        report = await session.ask([], QUESTION, history=history).result()
        history.append((QUESTION, report.answer))
        assert number == 0 or up(report) <= UPDATE + FRAME + ASK + AFTER


async def test_later_questions_cost_as_little(session: Session) -> None:
    # gRPC must not begin to send two window updates for each question in a long conversation.
    reports = [await session.ask([], QUESTION).result() for _ in range(101)]
    assert max(map(up, reports[1:])) <= UPDATE + FRAME + ASK
