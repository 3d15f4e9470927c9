"""Several servers: the order of a device, and what moves it to the next one."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from device_client.fake import FakeEncoder
from device_client.link import Target
from device_client.servers import Servers, joint_error, ranked
from device_client.session import Session
from tests.client.conftest import AT_ONCE, FakeServer
from tofc.errors import (
    CallError,
    DeadlineError,
    InternalError,
    LimitError,
    LinkLostError,
    MismatchError,
    ReplyError,
    TokenError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from tofc.rpc.channel import bind, make_server
from tofc.v1 import tofc_pb2_grpc

TARGETS = [Target(address=f"edge{number}.example.org:50061") for number in range(5)]
DEVICE = "kitchen"

LOADING = UnavailableError("still loading", reason="LOADING")
FULL = LimitError("one session is open", reason="TOO_MANY_SESSIONS", retry_after_s=3.0)
STOPPING = UnavailableError("stopping", reason="STOPPING")
LOST = UnavailableError("its engine was lost", reason="ENGINE_LOST")


def test_devices_are_spread_evenly_and_the_order_given_does_not_matter() -> None:
    first = Counter(ranked(TARGETS, f"device {number}")[0].address for number in range(1000))
    assert len(first) == len(TARGETS) and max(first.values()) < 1.35 * 200, first
    assert ranked(TARGETS[::-1], DEVICE) == ranked(TARGETS, DEVICE)


def test_one_server_less_moves_only_its_own_devices() -> None:
    for number in range(100):
        order = ranked(TARGETS, f"device {number}")
        gone = TARGETS[number % len(TARGETS)]
        assert ranked([one for one in TARGETS if one is not gone], f"device {number}") == [
            one for one in order if one is not gone
        ]


@pytest.mark.parametrize(
    ("failure", "order"),
    [
        (LinkLostError(), "bac"),  # the link may be at fault: the same server has the pictures
        (LinkLostError(reason="STOPPING"), "acb"),
        (UnavailableError(reason="ENGINE_LOST"), "acb"),
        (LimitError(reason="SESSION_USED_UP"), "bac"),
        (None, "bac"),
    ],
)
def test_what_is_tried_after_a_link_ended(failure: Exception | None, order: str) -> None:
    servers = Servers(targets=tuple(Target(address=f"{name}:1") for name in "abc"))
    assert "".join(one.address[0] for one in servers.round("b:1", failure)) == order
    assert "".join(one.address[0] for one in servers.round(None, None)) == "abc"


@pytest.mark.parametrize(
    ("errors", "kind", "reason"),
    [
        ([UnavailableError("no"), LOADING], UnavailableError, "LOADING"),
        ([UnavailableError("no"), FULL, LOST], UnavailableError, "ENGINE_LOST"),
        ([STOPPING, FULL, MismatchError("other")], LimitError, "TOO_MANY_SESSIONS"),
        ([FULL, LimitError("no", reason="TOO_MANY_HANDSHAKES")], LimitError, "TOO_MANY_HANDSHAKES"),
        ([MismatchError("other", reason="MODEL_MISMATCH"), STOPPING], UnavailableError, "STOPPING"),
        ([TokenError("no"), MismatchError("other")], TokenError, "TOKEN_REFUSED"),
    ],
)
def test_an_error_about_all_servers_names_each(errors: list[CallError], kind: type, reason: str) -> None:
    error = joint_error([(f"s{number}:1", one) for number, one in enumerate(errors)])
    assert type(error) is kind and error.reason == reason
    assert all(f"s{number}:1: {one.message}" in error.message for number, one in enumerate(errors))


def test_servers_are_given_once() -> None:
    with pytest.raises(UsageError, match="--server a:1 is given 2 times; name each server once"):
        Servers.of([Target(address="a:1"), Target(address="b:1"), Target(address="a:1")])


Fakes = list[FakeServer]
Begin = Callable[..., Session]


@pytest_asyncio.fixture
async def fakes() -> AsyncIterator[Fakes]:
    """Two servers, in the order of the device, with keys of their own."""
    async with AsyncExitStack() as stack:
        made: dict[str, FakeServer] = {}
        for number in range(2):
            servicer, running = FakeServer(), make_server()
            servicer.picture_key, servicer.reply_start = bytes([number]) * 16, "yes"
            tofc_pb2_grpc.add_TofcServiceServicer_to_server(servicer, running)
            servicer.port = bind(running, "127.0.0.1", 0)
            await running.start()
            stack.push_async_callback(running.stop, 0)
            made[f"127.0.0.1:{servicer.port}"] = servicer
        yield [made[one.address] for one in ranked([Target(address=address) for address in made], DEVICE)]


@pytest_asyncio.fixture
async def begin(fakes: Fakes) -> AsyncIterator[Begin]:
    sessions: list[Session] = []

    def make(encoder: FakeEncoder | None = None, **more: Any) -> Session:
        targets = [Target(address=f"127.0.0.1:{one.port}") for one in fakes]
        sessions.append(Session(targets, encoder or FakeEncoder(), device=DEVICE, **{"retry": AT_ONCE, **more}))
        return sessions[-1]

    yield make
    for session in sessions:
        await session.close()


async def test_one_server_is_asked_while_it_can_serve(fakes: Fakes, begin: Begin, small: Path) -> None:
    for _ in range(3):
        session = begin()
        await session.ask([session.open(small)], "there?").result()
    assert (fakes[0].sessions, fakes[1].sessions) == (3, 0)


@pytest.mark.parametrize("refusal", [LOADING, FULL, STOPPING, LOST])
async def test_the_next_one_is_asked_at_once_if_the_first_cannot_serve(
    fakes: Fakes, begin: Begin, refusal: CallError
) -> None:
    fakes[0].refusal = refusal
    logged: list[str] = []
    report = await begin(log=logged.append).ask([], "there?").result()
    assert (report.answer, report.reconnects) == ("yes to there?", 0)
    assert (fakes[0].sessions, fakes[1].sessions) == (1, 1) and not logged


async def test_a_server_lost_in_the_middle_of_an_answer_is_replaced_and_nothing_is_shown_twice(
    fakes: Fakes, begin: Begin, wide: Path
) -> None:
    encoder, logged = FakeEncoder(), list[str]()
    session = begin(encoder, log=logged.append)
    fakes[0].lose = [2]

    async def gone(_: float) -> None:
        fakes[0].refusal = STOPPING

    session._sleep = gone
    answer = session.ask([session.open(wide)], "is the cat still there?")
    shown = [delta.text async for delta in answer]
    assert "".join(shown) == "yes to is the cat still there?" and answer.report is not None
    assert answer.report.reconnects == 1 and encoder.encoded == answer.report.views, "encoded once, sent to both"
    assert [len(fake.received("view")) for fake in fakes] == [answer.report.views] * 2
    assert not any(one.want_state for one in fakes[1].received("picture")), "it is new there: nothing to wait for"
    first, second = (f"127.0.0.1:{fake.port}" for fake in fakes)
    assert logged == [f"{first} was lost; asking {second}"]


async def test_a_link_that_was_lost_does_not_move_a_device(fakes: Fakes, begin: Begin, small: Path) -> None:
    session = begin()
    fakes[0].lose = [1]
    report = await session.ask([session.open(small)], "still there?").result()
    assert (report.answer, report.reconnects) == ("yes to still there?", 1)
    assert (fakes[0].sessions, fakes[1].sessions) == (2, 0)


@pytest.mark.parametrize("error", [STOPPING, LOST])
async def test_a_question_that_a_server_cannot_take_is_asked_elsewhere(
    fakes: Fakes, begin: Begin, small: Path, error: CallError
) -> None:
    session = begin()
    fakes[0].fail = error
    report = await session.ask([session.open(small)], "fail?").result()
    assert report.answer == "yes to fail?" and (fakes[0].sessions, fakes[1].sessions) == (1, 1)


async def test_a_server_with_another_model_is_named_and_left_out(fakes: Fakes, begin: Begin) -> None:
    fakes[0].model_id = "another"
    logged: list[str] = []
    session = begin(log=logged.append)
    assert (await session.ask([], "there?").result()).answer == "yes to there?"
    (told,) = logged
    assert told.startswith(f"127.0.0.1:{fakes[0].port}: the server runs model another, this device ")
    assert told.endswith("(this server is not asked again)")
    assert session._connection.current is not None
    session._connection.current.end(LinkLostError("gone"))
    await session.ask([], "there?").result()
    assert fakes[0].sessions == 1, "it was not asked again"


@pytest.mark.parametrize(
    "error", [InternalError("a defect"), ReplyError("nonsense"), DeadlineError("no Hello", reason="HELLO_MISSING")]
)
async def test_a_server_that_failed_once_is_asked_again(fakes: Fakes, begin: Begin, error: CallError) -> None:
    fakes[0].refusal = error
    logged: list[str] = []
    session = begin(log=logged.append)
    await session.ask([], "there?").result()
    assert (fakes[0].sessions, fakes[1].sessions) == (1, 1) and not logged
    assert session._connection.current is not None
    fakes[0].refusal, fakes[1].refusal = None, STOPPING
    session._connection.current.end(LinkLostError("gone"))
    assert (await session.ask([], "there?").result()).answer == "yes to there?"
    assert fakes[0].sessions == 2


@pytest.mark.parametrize("error", [TokenError("token missing"), UnsupportedError("no such call")])
async def test_a_server_that_will_never_do_is_not_asked_again(fakes: Fakes, begin: Begin, error: CallError) -> None:
    fakes[0].refusal = error
    session = begin()
    await session.ask([], "there?").result()
    assert session._connection.current is not None
    fakes[0].refusal, fakes[1].refusal = None, STOPPING
    session._connection.current.end(LinkLostError("gone"))
    with pytest.raises(LinkLostError, match=error.message):
        await session.ask([], "there?").result()
    assert fakes[0].sessions == 1


async def test_if_no_server_will_do_the_error_names_all(fakes: Fakes, begin: Begin) -> None:
    fakes[0].model_id, fakes[1].refusal = "another", TokenError("token missing")
    with pytest.raises(CallError) as refused:
        await begin().connect()
    assert exit_reasons(refused.value) == {fakes[0].port, fakes[1].port}
    assert "runs model another" in str(refused.value) and "token missing" in str(refused.value)


def exit_reasons(error: CallError) -> set[int]:
    """Return the ports that an error names."""
    return {int(word.rstrip(":").rpartition(":")[2]) for word in error.message.split() if word.startswith("127.0.0.1:")}


async def test_an_error_of_a_question_says_which_server_it_came_from(fakes: Fakes, begin: Begin) -> None:
    fakes[0].fail = LimitError("too much", reason="LIMIT_EXCEEDED")
    with pytest.raises(LimitError, match=rf"^127\.0\.0\.1:{fakes[0].port}: too much$"):
        await begin().ask([], "fail?").result()


async def test_servers_that_are_all_loading_are_waited_for(fakes: Fakes, begin: Begin) -> None:
    for fake in fakes:
        fake.loading = 2
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    logged: list[str] = []
    report = await begin(sleep=sleep, log=logged.append).ask([], "there?").result()
    assert report.answer == "yes to there?" and len(pauses) == 2
    first, second = (f"127.0.0.1:{fake.port}" for fake in fakes)
    assert logged == [f"the server at {first} or {second} is loading its model; waiting"]
