"""Two real servers as processes; the one that a device asks is killed in the middle of an answer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from device_client.encoder import TowerEncoder
from device_client.link import Target
from device_client.sampling import Sampling
from device_client.servers import ranked
from device_client.session import Session
from tests.e2e.conftest import MODEL, PICTURES
from tofc import Client
from tofc.errors import UnavailableError

DEVICE = "kitchen"
SEED = 3
LONG = Sampling(temperature=6.0, seed=SEED, max_tokens=300)  # nano's own answers are one word

Servers = dict[str, "subprocess.Popen[str]"]


@pytest.fixture
def servers() -> Iterator[Servers]:
    """Two servers, by address, in the order of the device."""
    command = [sys.executable, "-m", "edge_server", "serve", "--port", "0", "--model", str(MODEL)]
    with ExitStack() as stack:
        started: Servers = {}
        processes = []
        for _ in range(2):
            process = subprocess.Popen(
                [*command, "--log-level", "warning"], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            started[next(line.split()[-1] for line in process.stdout if line.startswith("listening on "))] = process
        yield {one.address: started[one.address] for one in ranked([Target(address=a) for a in started], DEVICE)}


async def test_an_answer_is_completed_by_the_other_server_and_nothing_is_shown_twice(
    servers: Servers, encoder: TowerEncoder
) -> None:
    targets = [Target(address=address) for address in servers]
    first, second = servers
    logged: list[str] = []
    async with Session(targets, encoder, device=DEVICE, log=logged.append) as session:
        picture = session.open(PICTURES / "picture-00.jpg")
        shown = ""
        answer = session.ask([picture], "what is in the picture?", sampling=LONG)
        async for delta in answer:
            assert not delta.replaces, "the same seed gives the same text"
            if not shown:
                servers[first].kill()
                servers[first].wait()
            shown += delta.text
        assert answer.report is not None
        again = await session.ask([picture], "what is in the picture?", sampling=LONG).result()
    assert answer.report.reconnects == 1 and answer.report.answer == shown == again.answer
    assert again.bytes_picture == 0 < answer.report.bytes_picture
    assert logged == [f"{first} was lost; asking {second}"]


def test_python_takes_several_servers_and_says_when_none_is_left(servers: Servers) -> None:
    with Client(list(servers)) as edge:
        picture = edge.picture(PICTURES / "picture-00.jpg")
        answer = picture.ask("what is in the picture?").text
        for address, process in servers.items():
            process.kill()
            process.wait()
            if address != list(servers)[-1]:
                assert picture.ask("what is in the picture?").text == answer
        with pytest.raises(UnavailableError) as gone:
            Client(list(servers)).connect()
        assert all(address in str(gone.value) for address in servers)
