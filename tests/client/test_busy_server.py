"""A server that is busy: the device waits as long as it says, tells the user, and sends no picture again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from device_client import batch
from device_client.exit_codes import REFUSED, exit_code
from device_client.fake import FakeEncoder
from device_client.session import Session
from tests.client.conftest import Begin, FakeServer
from tests.client.test_batch import read, run, write
from tests.client.test_cli import ask, command
from tofc.errors import LimitError

BUSY = LimitError("8 questions are being answered; ask again", reason="ENGINE_BUSY", retry_after_s=2.0)
NO_MEMORY = LimitError("no memory for a view", reason="NO_MEMORY", retry_after_s=2.0)


class Waits:
    """Notes waits and what the user was told; after `until` waits the server answers."""

    def __init__(self, server: FakeServer, error: LimitError, until: int) -> None:
        self.pauses_s: list[float] = []
        self.logged: list[str] = []
        self._server, self._until = server, until
        server.fail = error

    async def sleep(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        if len(self.pauses_s) == self._until:
            self._server.fail = None

    def session(self, begin: Begin, wait_s: float | None = None) -> Session:
        return begin(sleep=self.sleep, log=self.logged.append, wait_s=wait_s)


async def test_it_is_asked_again_over_the_same_link_and_pictures_are_not_sent_again(
    server: FakeServer, begin: Begin, wide: Path
) -> None:
    waits = Waits(server, BUSY, until=3)
    session = waits.session(begin)
    report = await session.ask([session.open(wide)], "fail?").result()
    assert (report.answer, report.refusals, report.reconnects) == ("yes to fail?", 3, 0)
    assert server.sessions == 1 and len(server.received("view")) == report.views
    assert len(server.received("picture")) == 1 and len(server.received("ask")) == 4
    assert all(2.0 <= pause_s <= 2.4 for pause_s in waits.pauses_s), "never sooner than it said"
    (told,) = waits.logged
    assert told.startswith(f"the server at 127.0.0.1:{server.port} is busy; asking again in 2")


@pytest.mark.parametrize(("timeout_s", "wait_s"), [(1.0, None), (None, 0.0), (None, 1.0), (1.0, 60.0)])
async def test_it_is_not_waited_for_beyond_the_user_s_limits(
    server: FakeServer, begin: Begin, timeout_s: float | None, wait_s: float | None
) -> None:
    waits = Waits(server, BUSY, until=1)
    with pytest.raises(LimitError, match="8 questions are being answered") as refused:
        await waits.session(begin, wait_s).ask([], "fail?", timeout_s=timeout_s).result()
    assert exit_code(refused.value) == REFUSED and not waits.pauses_s and not waits.logged


async def test_waits_add_up_to_what_the_user_allows(server: FakeServer, begin: Begin) -> None:
    waits = Waits(server, BUSY, until=100)
    with pytest.raises(LimitError):
        await waits.session(begin, wait_s=10.0).ask([], "fail?").result()
    assert 2 <= len(waits.pauses_s) <= 4 and sum(waits.pauses_s) <= 10.0


async def test_waiting_in_a_queue_leaves_the_tries_for_memory(server: FakeServer, begin: Begin) -> None:
    server.fail = BUSY
    pauses_s: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses_s.append(seconds)
        server.fail = BUSY if len(pauses_s) < 4 else NO_MEMORY if len(pauses_s) < 7 else None

    report = await begin(sleep=sleep).ask([], "fail?").result()
    assert (report.answer, report.refusals) == ("yes to fail?", 7)


async def test_memory_that_is_short_is_not_waited_for_forever(server: FakeServer, begin: Begin) -> None:
    waits = Waits(server, NO_MEMORY, until=100)
    with pytest.raises(LimitError, match="no memory for a view"):
        await waits.session(begin).ask([], "fail?").result()
    assert len(waits.pauses_s) == 3


async def test_a_full_server_is_tried_again_when_it_says(server: FakeServer, begin: Begin) -> None:
    server.refusal = LimitError("one session is open", reason="TOO_MANY_SESSIONS", retry_after_s=7.0)
    pauses_s: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses_s.append(seconds)
        server.refusal = None

    report = await begin(sleep=sleep, wait_s=60.0).ask([], "there?").result()
    assert report.answer == "yes to there?" and len(pauses_s) == 1 and 7.0 <= pauses_s[0] <= 8.4


async def test_a_line_of_a_batch_waits_and_then_fails_and_the_batch_goes_on(
    server: FakeServer, begin: Begin, small: Path, tmp_path: Path
) -> None:
    waits = Waits(server, BUSY, until=100)
    questions = tmp_path / "q.jsonl"
    write(questions, *({"image": str(small), "question": text} for text in ("fail?", "and now?")))
    answered, warnings = await run(waits.session(begin, wait_s=10.0), batch.read_lines(questions), tmp_path / "out")
    assert answered == [False, True] and len(waits.logged) == 1 and len(waits.pauses_s) > 1
    assert warnings == ["line 1: 8 questions are being answered; ask again"]
    first, second = read(tmp_path / "out")
    assert first["error"] == BUSY.message and second["answer"] == "yes to and now?"


def test_a_command_tells_the_user_on_stderr_and_json_stays_json(
    serving: FakeServer, encoders: list[FakeEncoder], small: Path
) -> None:
    serving.fail = LimitError("wait", reason="ENGINE_BUSY", retry_after_s=0.001)
    serving.failures = 2
    result = ask(serving, small, "fail?", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["refusals"] == 2
    (told,) = result.stderr.splitlines()
    assert told.startswith(f"device-client: the server at 127.0.0.1:{serving.port} is busy; asking again in 0.001")
    serving.failures = None
    result = ask(serving, small, "fail?", "--wait", 0)
    assert (result.exit_code, result.stdout, result.stderr) == (REFUSED, "", "device-client: wait\n")


def test_servers_may_come_from_the_environment() -> None:
    result = command("ask", "cat.png", "why?", TOFC_DEVICE_SERVER="127.0.0.1:1,127.0.0.1:0")
    assert result.exit_code == 2 and "--server must have a port above 0, got 127.0.0.1:0" in result.stderr
