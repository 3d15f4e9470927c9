import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from device_client import cli
from device_client.errors import NO_SERVER, REFUSED, exit_code
from device_client.fake import FakeEncoder
from device_client.link import LinkLost, Target
from device_client.patience import Clock
from device_client.session import Retry, Session
from shared.rpc.channel import bind, make_server
from shared.rpc.errors import DeadlineError, LimitError, TofcError, TokenError, UnavailableError
from shared.rpc.tofc.v1 import tofc_pb2_grpc
from tests.client.conftest import Begin, FakeServer
from tests.client.test_cli import ask, command

LOADING = UnavailableError("still loading", reason="LOADING")
FULL = LimitError("one session is open", reason="TOO_MANY_SESSIONS")
STOPPING = UnavailableError("stopping", reason="STOPPING")


class Night:
    """Sleep that takes no time, after the `last` of which the server lets sessions in. ``waits``: the seconds."""

    def __init__(self, server: FakeServer, refusal: TofcError | None, last: int = 10**6) -> None:
        self.waits: list[float] = []
        self.said: list[str] = []
        self.server, self.refusal, self.last = server, refusal, last
        server.refusal = refusal

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.server.refusal = self.refusal if len(self.waits) < self.last else None

    @property
    def given(self) -> dict[str, Any]:
        """To a session."""
        return {"sleep": self.sleep, "tell": self.said.append, "retry": Retry(first_s=30.0, most_s=30.0)}


async def test_a_server_that_loads_is_waited_for_and_that_is_no_question_s_time(
    server: FakeServer, begin: Begin
) -> None:
    night = Night(server, LOADING, last=20)
    report = await begin(**night.given).ask([], "awake?", timeout_s=100).result()
    assert (report.answer, report.reconnects) == ("yes to awake?", 0)
    assert len(night.waits) == 20
    assert night.said == [f"the server at 127.0.0.1:{server.port} is loading its model; waiting"]
    (asked,) = server.said("ask")
    assert asked.deadline_ms > 300_000, "hundreds of seconds were waited, and put off its end"


async def test_a_server_that_is_restarted_is_waited_for_too(server: FakeServer, begin: Begin, small: Path) -> None:
    night = Night(server, None)
    session = begin(**night.given)
    await session.connect()
    night.refusal, night.last, server.lose = LOADING, 20, [0]
    assert session._link is not None
    session._link.end(LinkLost("restarted"))
    server.refusal = LOADING
    report = await session.ask([session.open(small)], "awake?", timeout_s=100).result()
    assert report.answer == "yes to awake?" and len(night.said) == 1


@pytest.mark.parametrize("refusal", [LOADING, FULL, STOPPING])
async def test_how_long_is_the_person_s_choice(server: FakeServer, begin: Begin, refusal: TofcError) -> None:
    night = Night(server, refusal)
    with pytest.raises(type(refusal), match=r"\(waited 70 s\)") as gone:
        await begin(wait_s=70, **night.given).connect()
    assert gone.value.reason == refusal.reason and exit_code(gone.value) == exit_code(refusal)
    assert sum(night.waits) == pytest.approx(70, abs=10) and len(night.waits) > 1
    assert len(night.said) == 1 and night.said[0].endswith("; waiting up to 70 s")
    night = Night(server, refusal, last=2)
    await begin(wait_s=70, **night.given).connect()


@pytest.mark.parametrize(
    ("refusal", "wait_s"), [(LOADING, 0), (FULL, None), (FULL, 0), (STOPPING, None), (TokenError(), 70)]
)
async def test_what_is_not_waited_for(
    server: FakeServer, begin: Begin, refusal: TofcError, wait_s: float | None
) -> None:
    night = Night(server, refusal)
    with pytest.raises(type(refusal)) as refused:
        await begin(wait_s=wait_s, **night.given).connect()
    assert str(refused.value) == str(refusal)
    assert not night.waits and not night.said and server.sessions == 1


@pytest.mark.parametrize("wait_s", [None, 0, 70])
async def test_a_server_that_is_not_there_yet(server: FakeServer, free_port: int, wait_s: float | None) -> None:
    said: list[str] = []
    later = make_server()
    tofc_pb2_grpc.add_TofcServiceServicer_to_server(server, later)

    async def start(_: float) -> None:
        bind(later, "127.0.0.1", free_port)
        await later.start()

    target = Target(address=f"127.0.0.1:{free_port}")
    async with Session(target, FakeEncoder(), wait_s=wait_s, sleep=start, tell=said.append) as session:
        if wait_s:
            await session.connect()
            assert said == [f"no server at 127.0.0.1:{free_port} yet; waiting up to 70 s"]
        else:
            with pytest.raises(UnavailableError, match="Connection refused"):
                await session.connect()
            assert not said
    await later.stop(0)


async def test_a_clock_that_stood_still() -> None:
    late = DeadlineError("late")
    with pytest.raises(DeadlineError, match="late"):
        async with Clock(0.0).within(late):
            await asyncio.Event().wait()
    clock = Clock(0.0)
    async with clock.within(late):
        clock.put_off(1000.0)
        for _ in range(3):
            await asyncio.sleep(0)
    assert clock.left_s is not None and clock.left_s > 500
    unlimited = Clock(None)
    unlimited.put_off(1.0)
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


def test_how_long_must_be_a_time(small: Path) -> None:
    for wrong in ("-1", "nan"):
        result = command("ask", small, "what?", "--wait", wrong)
        assert result.exit_code == 2 and f"--wait must be 0 or more seconds, got {wrong}" in result.stderr


def test_help_tells_the_exit_codes() -> None:
    for name in ("ask", "chat"):
        told = " ".join(command(name, "--help").stdout.split())
        assert "3 no server" in told and "untrusted certificate" in told and "130 interrupted" in told
