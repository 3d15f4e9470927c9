from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from device_client import cli
from device_client.deadline import Deadline
from device_client.exit_codes import NO_SERVER, REFUSED, exit_code
from device_client.fake import FakeEncoder
from device_client.link import Target
from device_client.retry_policy import RetryPolicy
from device_client.session import Session
from tests.client.conftest import Begin, FakeServer
from tests.client.test_cli import ask, command
from tofc.errors import CallError, DeadlineError, LimitError, LinkLostError, TokenError, UnavailableError
from tofc.rpc.channel import bind, make_server
from tofc.v1 import tofc_pb2_grpc

LOADING = UnavailableError("still loading", reason="LOADING")
FULL = LimitError("one session is open", reason="TOO_MANY_SESSIONS")
STOPPING = UnavailableError("stopping", reason="STOPPING")
CROWDED_OUT = LimitError("too many say no Hello", reason="TOO_MANY_HANDSHAKES", retry_after_s=1.0)
UNHEARD = DeadlineError("no Hello", reason="HELLO_MISSING")
BUSY_PROXY = LimitError("too many calls", retry_after_s=2.0)  # a status without a reason


class FakeSleep:
    """Sleep that takes no time; after `last` calls the server accepts sessions. `pauses_s`: the time of each call."""

    def __init__(self, server: FakeServer, refusal: CallError | None, last: int = 10**6) -> None:
        self.pauses_s: list[float] = []
        self.logged: list[str] = []
        self.server, self.refusal, self.last = server, refusal, last
        server.refusal = refusal

    async def sleep(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        self.server.refusal = self.refusal if len(self.pauses_s) < self.last else None

    @property
    def settings(self) -> dict[str, Any]:
        """Return a session's settings."""
        return {"sleep": self.sleep, "log": self.logged.append, "retry": RetryPolicy(first_s=30.0, max_s=30.0)}


async def test_a_server_that_loads_is_waited_for_and_questions_lose_no_time(server: FakeServer, begin: Begin) -> None:
    fake = FakeSleep(server, LOADING, last=20)
    report = await begin(**fake.settings).ask([], "awake?", timeout_s=50).result()
    assert (report.answer, report.reconnects) == ("yes to awake?", 0)
    assert len(fake.pauses_s) == 20
    assert fake.logged == [f"the server at 127.0.0.1:{server.port} is loading its model; waiting"]
    (asked,) = server.received("ask")
    assert not asked.deadline_ms, "hundreds of seconds were waited, and extended the deadline beyond what is sent"


async def test_a_server_that_is_restarted_is_waited_for_too(server: FakeServer, begin: Begin, small: Path) -> None:
    fake = FakeSleep(server, None)
    session = begin(**fake.settings)
    await session.connect()
    fake.refusal, fake.last, server.lose = LOADING, 20, [0]
    assert session._connection.current is not None
    session._connection.current.end(LinkLostError("restarted"))
    server.refusal = LOADING
    report = await session.ask([session.open(small)], "awake?", timeout_s=100).result()
    assert report.answer == "yes to awake?" and len(fake.logged) == 1


async def test_a_device_that_was_crowded_out_comes_back_within_its_question_s_time(
    server: FakeServer, begin: Begin
) -> None:
    fake = FakeSleep(server, CROWDED_OUT, last=20)
    report = await begin(**fake.settings).ask([], "awake?", timeout_s=50).result()
    assert (report.answer, report.reconnects) == ("yes to awake?", 0)
    assert len(fake.pauses_s) == 20 and all(1.0 <= pause_s <= 1.2 for pause_s in fake.pauses_s)
    assert fake.logged == [f"the server at 127.0.0.1:{server.port} is busy opening sessions; waiting"]
    (asked,) = server.received("ask")
    assert 0 < asked.deadline_ms <= 50_000, "the deadline was not extended: a crowd may stay for ever"


@pytest.mark.parametrize("ends", [True, False])
async def test_a_hello_that_does_not_arrive_in_time_is_sent_again_over_other_links(
    ends: bool, server: FakeServer, begin: Begin
) -> None:
    fake = FakeSleep(server, UNHEARD, last=3 if ends else 10**6)
    session = begin(**fake.settings)
    if ends:
        await session.connect()
        assert len(fake.pauses_s) == 3
    else:
        with pytest.raises(UnavailableError, match=r"no Hello \(6 tries\)") as given_up:
            await session.connect()
        assert exit_code(given_up.value) == NO_SERVER and given_up.value.reason == "HELLO_MISSING"
        assert server.sessions == 6
    assert fake.logged == [f"the link to the server at 127.0.0.1:{server.port} is slow; waiting"]


@pytest.mark.parametrize("refusal", [LOADING, FULL, STOPPING, CROWDED_OUT, BUSY_PROXY])
async def test_the_user_chooses_how_long_to_wait(server: FakeServer, begin: Begin, refusal: CallError) -> None:
    fake = FakeSleep(server, refusal)
    with pytest.raises(type(refusal), match=r"\(waited 70 s\)") as gone:
        await begin(wait_s=70, **fake.settings).connect()
    assert gone.value.reason == refusal.reason and exit_code(gone.value) == exit_code(refusal)
    assert sum(fake.pauses_s) == pytest.approx(70, abs=10) and len(fake.pauses_s) > 1
    assert len(fake.logged) == 1 and fake.logged[0].endswith("; waiting up to 70 s")
    fake = FakeSleep(server, refusal, last=2)
    await begin(wait_s=70, **fake.settings).connect()


@pytest.mark.parametrize(
    ("refusal", "wait_s"),
    [
        (LOADING, 0),
        (FULL, None),
        (FULL, 0),
        (BUSY_PROXY, None),
        (CROWDED_OUT, 0),
        (UnavailableError("no Hello", reason="HELLO_MISSING"), 0),
        (STOPPING, None),
        (TokenError(), 70),
    ],
)
async def test_what_is_not_waited_for(
    server: FakeServer, begin: Begin, refusal: CallError, wait_s: float | None
) -> None:
    fake = FakeSleep(server, refusal)
    with pytest.raises(type(refusal)) as refused:
        await begin(wait_s=wait_s, **fake.settings).connect()
    assert str(refused.value) == str(refusal)
    assert not fake.pauses_s and not fake.logged and server.sessions == 1


@pytest.mark.parametrize("wait_s", [None, 0, 70])
async def test_a_server_that_is_not_there_yet(server: FakeServer, free_port: int, wait_s: float | None) -> None:
    logged: list[str] = []
    later = make_server()
    tofc_pb2_grpc.add_TofcServiceServicer_to_server(server, later)

    async def start(_: float) -> None:
        bind(later, "127.0.0.1", free_port)
        await later.start()

    target = Target(address=f"127.0.0.1:{free_port}")
    async with Session(target, FakeEncoder(), wait_s=wait_s, sleep=start, log=logged.append) as session:
        if wait_s:
            await session.connect()
            assert logged == [f"no server at 127.0.0.1:{free_port} yet; waiting up to 70 s"]
        else:
            with pytest.raises(UnavailableError, match="Connection refused"):
                await session.connect()
            assert not logged
    await later.stop(0)


async def test_a_deadline_that_is_extended() -> None:
    late = DeadlineError("late")
    with pytest.raises(DeadlineError, match="late"):
        async with Deadline(0.0).within(late):
            await asyncio.Event().wait()
    deadline = Deadline(0.0)
    async with deadline.within(late):
        deadline.extend(1000.0)
        for _ in range(3):
            await asyncio.sleep(0)
    assert deadline.left_s is not None and deadline.left_s > 500
    unlimited = Deadline(None)
    unlimited.extend(1.0)
    assert unlimited.left_s is None


def batch(server: FakeServer, picture: Path, folder: Path, **environment: str) -> Any:
    line = {"image": str(picture), "question": "awake?"}
    (folder / "q.jsonl").write_text(json.dumps(line) + "\n")
    return ask(server, "--batch", folder / "q.jsonl", "--out", folder / "out.jsonl", **environment)


def chat(server: FakeServer, picture: Path, **environment: str) -> Any:
    words = ["chat", str(picture), "--server", f"127.0.0.1:{server.port}"]
    return CliRunner().invoke(cli.app, words, input="awake?\n", env=environment)


@pytest.mark.parametrize("how", ["ask", "batch", "chat"])
def test_the_commands(how: str, serving: FakeServer, encoders: list[FakeEncoder], small: Path, tmp_path: Path) -> None:
    def run(**environment: str) -> Any:
        if how == "ask":
            return ask(serving, small, "awake?", **environment)
        return batch(serving, small, tmp_path, **environment) if how == "batch" else chat(serving, small, **environment)

    serving.loading = 1
    refused = run(TOFC_DEVICE_WAIT="0")
    assert refused.exit_code == NO_SERVER and "still loading" in refused.stderr and serving.sessions == 1
    (tmp_path / "out.jsonl").unlink(missing_ok=True)
    serving.loading = 2
    result = run()
    assert result.exit_code == 0
    line = f"device-client: the server at 127.0.0.1:{serving.port} is loading its model; waiting"
    assert result.stderr.splitlines().count(line) == 1 and line not in result.stdout
    assert serving.sessions == 4
    serving.refusal = FULL
    (tmp_path / "out.jsonl").unlink(missing_ok=True)
    assert run().exit_code == REFUSED and serving.sessions == 5


def test_the_wait_must_be_a_number_of_seconds(small: Path) -> None:
    for wrong in ("-1", "nan"):
        result = command("ask", small, "what?", "--wait", wrong)
        assert result.exit_code == 2 and f"--wait must be 0 or more seconds, got {wrong}" in result.stderr


def test_help_lists_the_exit_codes() -> None:
    for name in ("ask", "chat"):
        shown = " ".join(command(name, "--help").stdout.split())
        assert "3 no server" in shown and "certificate not trusted" in shown and "130 interrupted" in shown
