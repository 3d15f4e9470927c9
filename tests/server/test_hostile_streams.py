"""Whatever clients send, in any order: the server replies, ends the session, and keeps nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from random import Random

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import Finding
from benchmarks.fuzz.requests import (
    PACKETS,
    Kind,
    Step,
    ask,
    cancel,
    changed,
    hello,
    picture,
    read,
    request,
    seeds,
    view,
    write,
)
from benchmarks.fuzz.streams import Streams, converse
from edge_server.answer import QuestionJob
from edge_server.session import ServerSession
from edge_server.uploads import Uploads
from tofc.v1 import tofc_pb2 as pb

SETTINGS = st.integers(0, 2)
client, small = st.integers(0, 1), st.integers(0, 4)
uint32 = small | st.integers(0, 2**32 - 1)
history = st.builds(pb.Turn, role=st.integers(-1, 4), text=st.text(max_size=30))
sampling = st.builds(
    pb.Sampling,
    max_tokens=uint32,
    temperature=st.none() | st.floats(width=32),
    top_p=st.none() | st.floats(0, 2, width=32),
    top_k=st.none() | uint32,
)
asks = st.builds(
    pb.Ask, request=uint32, refs=st.lists(small, max_size=9), question=st.text(max_size=30),
    history=st.lists(history, max_size=4), sampling=st.none() | sampling, deadline_ms=uint32, thinking=st.booleans(),
    previous_request=small,
)  # fmt: skip
step = st.one_of(
    st.builds(picture, client, small, st.integers(0, 2), small, small),
    st.builds(view, client, small, small, st.sampled_from(PACKETS) | st.binary(max_size=20)),
    st.builds(ask, client, small, small, pause=small),
    st.builds(cancel, client, small),
    st.builds(lambda who, asked: request(who, asks=[asked]), client, asks),
    st.builds(Step, client, st.sampled_from(Kind), st.integers(0, 63), st.binary(max_size=12)),
    st.builds(hello, client),
)
quick = settings(max_examples=100, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@quick
@given(SETTINGS, st.lists(step, max_size=25))
def test_any_requests_after_hello(settings_: int, steps: list[Step]) -> None:
    steps = [hello(0), hello(1), *steps]
    converse(settings_, [[one for one in steps if one.client == who] for who in (0, 1)])


@quick
@given(SETTINGS, st.lists(step, max_size=4))
def test_any_requests_at_all(settings_: int, steps: list[Step]) -> None:
    converse(settings_, [steps])


@quick
@given(SETTINGS, st.sampled_from(seeds()), st.randoms(use_true_random=False))
def test_valid_sessions_with_small_changes(settings_: int, steps: list[Step], rng: Random) -> None:
    for _ in range(3):
        steps = changed(steps, rng, lambda data: rng.randbytes(len(data)))
    converse(settings_, [[one for one in steps if one.client == who] for who in (0, 1)])


@quick
@given(st.binary(max_size=400))
def test_any_bytes_are_steps_and_steps_are_bytes(data: bytes) -> None:
    steps = read(data)
    assert read(write(steps)) == steps


def in_time(steps: list[Step]) -> bool:
    """Return whether no question has a deadline, which passes before its picture has come."""
    requests = [pb.SessionRequest.FromString(step.request) for step in steps if step.kind is Kind.REQUEST]
    return not any(ask.deadline_ms for request in requests for ask in request.asks)


@pytest.mark.parametrize("steps", [steps for steps in seeds() if in_time(steps)])
def test_good_sessions_end_well(steps: list[Step]) -> None:
    played = converse(0, [[one for one in steps if one.client == who] for who in (0, 1)])
    leaves = any(one.kind is Kind.LEAVE for one in steps)
    assert [one.status for one in played] == [None if leaves else grpc.StatusCode.OK, grpc.StatusCode.OK]
    assert all(not response.HasField("error") for one in played for response in one.responses)


def test_a_client_that_reads_nothing_loses_its_session() -> None:
    steps = [
        hello(0),
        Step(0, Kind.READ_NOT),
        *(picture(0, 1, 0, want_state=True) for _ in range(60)),
        Step(0, Kind.WAIT, 1),
    ]
    assert converse(0, [steps])[0].status is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("broken", "name", "kind"),
    [
        (Uploads, "close", "not in use"),  # announced pictures are kept for ever
        (Uploads, "release", "not in use"),  # a question's pictures are
        (ServerSession, "_cancel", "INTERNAL|client's"),
        (QuestionJob, "_wait_for_views", "INTERNAL|client's"),
    ],
)
def test_a_broken_server_is_found_out(broken: type, name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise these tests could pass with any server."""

    async def fails(*_: object) -> None:
        raise ValueError("planted")

    monkeypatch.setattr(broken, name, (lambda *_, **__: None) if broken is Uploads else fails)
    target = Streams()
    cases = [*target.seeds(), b"\0" + write([hello(0), picture(0, 1, 0, 1, 1), view(0, 1), ask(0, 1, 1), cancel(0, 1)])]
    with pytest.raises(Finding, match=kind):
        for case in cases:
            target.run(case)


def test_a_server_that_waits_for_ever_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncio.Semaphore.release", lambda _: None)
    steps = [hello(0), picture(0, 1, 0, 3, 3), *(view(0, 1, index) for index in range(10))]
    with pytest.raises(Finding, match="waits"):
        converse(0, [steps])
