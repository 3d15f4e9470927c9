from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image

from device_client.conversations import KEPT
from device_client.deadline import Deadline
from device_client.encoder import EncoderThread
from device_client.fake import FakeEncoder
from device_client.link import NOT_BACK, VIEWS_IN_FLIGHT, Link, Target
from device_client.question import SEED_BITS, PendingQuestion, Submission
from device_client.report import Report
from device_client.retry_policy import RetryPolicy
from device_client.sampling import Sampling
from device_client.session import Session
from edge_server.credentials import write
from tests.client.conftest import Begin, FakeServer
from tofc.errors import (
    CallError,
    CancelledError,
    CorruptPacketError,
    DeadlineError,
    EncoderError,
    LimitError,
    LinkLostError,
    MismatchError,
    ReplyError,
    TlsError,
    TokenError,
    UnavailableError,
    UsageError,
)
from tofc.rpc.channel import bind, make_server
from tofc.rpc.security import ClientSecurity, ServerSecurity
from tofc.v1 import tofc_pb2 as pb


async def test_order_of_messages_and_report(server: FakeServer, begin: Begin, small: Path) -> None:
    session = begin()
    picture = session.open(small)
    answer = session.ask([picture], "is this a test?")
    deltas = [delta.text async for delta in answer]
    assert deltas == ["yes", " to", " is", " this", " a", " test?"]
    assert server.kinds() == ["hello", "picture", "view", "ask"]
    report = answer.report
    assert report is not None and report.answer == "yes to is this a test?"
    assert (report.bytes_picture, report.views, report.views_sent, report.features) == (100, 1, 1, 36)
    assert report.finish_reason == "stop" and report.usage["prompt_tokens"] == 50
    assert report.timings["server_prefill"] == 2
    if report.bytes_up is not None:  # packet, preface and headers
        assert 100 < report.bytes_up < 2000 and report.bytes_down is not None


async def test_a_second_question_costs_only_the_question(server: FakeServer, begin: Begin, wide: Path) -> None:
    encoder = FakeEncoder()
    session = begin(encoder)
    first = await session.ask([session.open(wide)], "one").result()
    second = await session.ask([session.open(wide)], "two", history=[("one", first.answer)]).result()
    assert first.views_sent == 21 == encoder.encoded
    assert (second.bytes_picture, second.views_sent) == (0, 0)
    assert server.kinds().count("picture") == 1
    assert server.prompts[1] == ["one", "yes to one", "two"]
    if first.bytes_up is not None and second.bytes_up is not None:
        assert second.bytes_up < 300 < first.bytes_up


async def test_a_question_continues_a_conversation_without_repeating_it(server: FakeServer, begin: Begin) -> None:
    session = begin()
    await session.ask([], "one").result()
    talk = [("one", "yes to one")]
    await session.ask([], "two", history=talk).result()
    server.conversations.clear()  # it cannot keep all
    report = await session.ask([], "three", history=talk).result()
    assert report.reconnects == 0 and server.sessions == 1
    await session.ask([], "four", history=[("one", "something else")]).result()
    await begin().ask([], "five", history=talk).result()
    assert [(ask.previous_request, [turn.text for turn in ask.history]) for ask in server.received("ask")] == [
        (0, []),
        (1, []),
        (1, []),
        (0, ["one", "yes to one"]),
        (0, ["one", "something else"]),
        (0, ["one", "yes to one"]),
    ]
    roles = [turn.role for turn in server.received("ask")[-1].history]
    assert roles == [pb.ROLE_USER, pb.ROLE_ASSISTANT]


async def test_two_questions_continue_a_conversation_that_the_server_dropped(server: FakeServer, begin: Begin) -> None:
    session = begin()
    await session.ask([], "one").result()
    server.conversations.clear()
    talk = [("one", "yes to one")]
    reports = await asyncio.gather(*(session.ask([], text, history=talk).result() for text in ("two", "three")))
    assert [report.answer for report in reports] == ["yes to two", "yes to three"]
    assert [ask.previous_request for ask in server.received("ask")] == [0, 1, 1, 0, 0]


@pytest.mark.parametrize("use", [{"question": "two", "history": [("one", "yes to one")]}, {"question": "one"}])
async def test_the_least_recently_used_conversation_is_dropped_first(
    use: dict[str, Any], server: FakeServer, begin: Begin
) -> None:
    session = begin()
    for question in ("one", *map(str, range(KEPT - 1))):
        await session.ask([], question).result()
    await session.ask([], **use).result()
    await session.ask([], "one more").result()
    await session.ask([], "still known?", history=[("one", "yes to one")]).result()
    assert server.received("ask")[-1].previous_request == (1 if "history" in use else KEPT + 1)


async def test_a_picture_and_its_question_leave_as_one_message(
    server: FakeServer, begin: Begin, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_client.link.HOLD_S", 60.0)
    picture = begin().open(small)
    await begin().ask([picture], "new?").result()
    server.stored.clear()
    await begin().ask([picture], "encoded already?").result()
    assert server.messages == [["hello"], ["pictures", "views", "asks"]] * 2


async def test_a_picture_that_takes_long_to_encode_is_announced_before(
    server: FakeServer, begin: Begin, small: Path
) -> None:
    announced = threading.Event()
    asking = asyncio.create_task(_result(begin(FakeEncoder(before_view=lambda _: announced.wait(20))), small))
    await server.until(lambda: "ask" in server.kinds())
    announced.set()
    assert (await asking).views_sent == 1
    assert server.messages == [["hello"], ["pictures", "asks"], ["views"]]


async def test_views_share_messages_but_the_first_and_the_last_do_not_wait(
    server: FakeServer, begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_client.link.HOLD_S", 60.0)
    Image.linear_gradient("L").resize((448, 448)).convert("RGB").save(tmp_path / "four.png")
    arrived = threading.Event()
    session = begin(FakeEncoder(before_view=lambda index: index == 0 or arrived.wait(20)))
    asking = asyncio.create_task(_result(session, tmp_path / "four.png"))
    await server.until(lambda: "view" in server.kinds())
    arrived.set()
    assert (await asking).views_sent == 5
    sent = [pb.SessionRequest.FromString(message) for message in server.wire]
    assert [[len(view.packets) for view in message.views] for message in sent] == [[], [1], [4]]


async def _result(session: Session, picture: Path) -> Report:
    return await session.ask([session.open(picture)], "well?").result()


async def test_pictures_do_not_overtake_questions(server: FakeServer, begin: Begin, small: Path, wide: Path) -> None:
    session = begin()
    await session.connect()
    pictures = [session.open(path) for path in (small, wide)]
    await asyncio.gather(*(session.ask([picture], "in order?").result() for picture in pictures))
    assert [kind for kind in server.kinds() if kind in ("picture", "ask")] == ["picture", "ask"] * 2


@pytest.mark.parametrize(("length", "messages"), [(10, 1), (20_000, 2)])
async def test_a_message_is_no_longer_than_others_can_wait(
    length: int, messages: int, server: FakeServer, begin: Begin
) -> None:
    session = begin()
    await session.connect()
    await asyncio.gather(*(session.ask([], letter * length).result() for letter in "ab"))
    assert server.messages == [["hello"], *[["asks"]] * messages]
    assert [ask.question[0] for ask in server.received("ask")] == ["a", "b"]


@pytest.mark.parametrize(
    ("by_default", "sampling", "seeded"),
    [
        (False, Sampling(), False),
        (True, Sampling(), True),
        (True, Sampling(temperature=0), False),
        (False, Sampling(temperature=0.5), True),
    ],
)
async def test_only_sampled_answers_have_a_seed(
    by_default: bool,
    sampling: Sampling,
    seeded: bool,
    server: FakeServer,
    begin: Begin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("random.getrandbits", lambda bits: 2**bits - 1)
    server.samples_by_default, server.lose = by_default, [2]
    await begin().ask([], "which one is it?", sampling=sampling).result()
    assert [ask.sampling.seed for ask in server.received("ask")] == [2**SEED_BITS - 1 if seeded else 0] * 2


async def test_each_server_knows_a_picture_by_another_name(server: FakeServer, begin: Begin, small: Path) -> None:
    for letter in (b"a", b"a", b"b"):
        server.picture_key = letter * 16
        await begin().ask([begin().open(small)], "seen it?").result()
    first, second, third = (announced.picture_id for announced in server.received("picture"))
    assert len(first) == 8 and first == second != third
    server.picture_key = b"short"
    with pytest.raises(ReplyError, match="key has 5 bytes, allowed are 16 to 64"):
        await begin().connect()


async def test_nothing_more_is_encoded_once_the_server_has_the_picture(
    server: FakeServer, begin: Begin, wide: Path
) -> None:
    await begin().ask([begin().open(wide)], "first device").result()
    answered = threading.Event()
    encoder = FakeEncoder(before_view=lambda index: index == 0 or answered.wait(20))
    session = begin(encoder)
    report = await session.ask([session.open(wide)], "second device").result()
    answered.set()
    assert encoder.encoded <= 2, "the view under way, and no other"
    assert report.views_sent <= 1


async def test_views_leave_while_later_ones_are_computed(server: FakeServer, begin: Begin, wide: Path) -> None:
    proceed = threading.Event()
    session = begin(FakeEncoder(before_view=lambda index: index < 2 or proceed.wait(20)))
    asking = asyncio.create_task(session.ask([session.open(wide)], "quick?").result())
    await server.until(lambda: server.kinds().count("view") == 2)
    assert not asking.done()
    proceed.set()
    assert (await asking).views_sent == 21


async def test_at_most_eight_views_are_unacknowledged(server: FakeServer, begin: Begin, wide: Path) -> None:
    server.acking.clear()
    encoder = FakeEncoder()
    session = begin(encoder)
    asking = asyncio.create_task(session.ask([session.open(wide)], "enough?").result())
    await server.until(lambda: server.kinds().count("view") == VIEWS_IN_FLIGHT)
    # A second picture has a place in line, too; its announcement overtakes the views that wait.
    assert server.kinds().count("view") == VIEWS_IN_FLIGHT and encoder.encoded <= VIEWS_IN_FLIGHT + 1
    server.acking.set()
    assert (await asking).views_sent == 21


async def test_a_forgotten_picture_is_sent_again_and_not_encoded_again(
    server: FakeServer, begin: Begin, wide: Path
) -> None:
    encoder = FakeEncoder()
    session = begin(encoder)
    picture = session.open(wide)
    await session.ask([picture], "one").result()
    server.stored.clear()
    report = await session.ask([picture], "two").result()
    assert report.answer == "yes to two"
    assert (report.views_sent, report.bytes_picture, encoder.encoded) == (21, 2100, 21)
    assert [one.ref for one in server.received("picture")] == [1, 1]


async def test_a_lost_link_is_repaired_and_the_answer_continues(server: FakeServer, begin: Begin, small: Path) -> None:
    server.lose = [2]
    session = begin()
    answer = session.ask([session.open(small)], "do you remember?")
    deltas = [delta async for delta in answer]
    assert "".join(delta.text for delta in deltas) == "yes to do you remember?"
    assert not any(delta.replaces for delta in deltas)
    assert server.kinds(2) == ["hello", "picture", "ask"], "the server has the picture still"
    assert answer.report is not None and answer.report.reconnects == 1


async def test_a_different_answer_after_a_lost_link_replaces_what_was_shown(
    server: FakeServer, begin: Begin, small: Path
) -> None:
    server.lose = [2]
    session = begin()
    deltas = []
    async for delta in session.ask([session.open(small)], "sure?"):
        deltas.append((delta.text, delta.replaces))
        server.reply_start = "no"
    assert deltas == [("yes", False), (" to", False), ("no", True), (" to", False), (" sure?", False)]


async def test_a_server_that_lost_the_picture_with_the_link_gets_it_again(
    server: FakeServer, begin: Begin, small: Path
) -> None:
    encoder = FakeEncoder()
    session = begin(encoder)
    picture = session.open(small)
    await session.ask([picture], "one").result()
    assert session._connection.current is not None
    session._connection.current.end(LinkLostError("cut here"))
    server.stored.clear()
    report = await session.ask([picture], "two").result()
    assert server.kinds(2) == ["hello", "picture", "ask", "view"] and encoder.encoded == 1
    assert report.views_sent == 1


async def test_losses_are_bounded(server: FakeServer, begin: Begin, small: Path) -> None:
    server.lose = [0] * 10
    session = begin(retry=RetryPolicy(first_s=0.0, losses=2))
    with pytest.raises(UnavailableError, match="cut"):
        await session.ask([session.open(small)], "again?").result()
    assert server.sessions == 3


async def test_only_the_last_pictures_of_earlier_links_are_remembered(
    server: FakeServer, begin: Begin, small: Path, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_client.uploads.KNOWN", 1)
    session = begin()
    pictures = [session.open(small), session.open(wide)]
    for picture in pictures:
        await session.ask([picture], "before?").result()
    assert session._connection.current is not None
    session._connection.current.end(LinkLostError("cut here"))
    sent = [(await session.ask([picture], "after?").result()).views_sent for picture in pictures]
    assert sent == [1, 0], "the first is sent again, of the second the server says that it has it"


async def test_reconnecting_is_bounded_and_waits_longer_each_time(
    server: FakeServer, begin: Begin, small: Path
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        server.refusal = UnavailableError("stopping", reason="STOPPING")

    server.lose = [1]
    session = begin(retry=RetryPolicy(connects=4, first_s=1.0, max_s=3.0), sleep=sleep)
    with pytest.raises(LinkLostError, match="4 tries"):
        await session.ask([session.open(small)], "there?").result()
    assert [round(wait) for wait in waits[:1]] == [1]
    assert 0.8 <= waits[1] <= 1.2 and 1.6 <= waits[2] <= 2.4 and 2.4 <= waits[3] <= 3.6 and len(waits) == 4


@pytest.mark.parametrize(
    "refusal",
    [
        UnavailableError("loading", reason="LOADING"),
        LimitError("our own lost session", reason="TOO_MANY_SESSIONS"),
        LimitError("others came at once", reason="TOO_MANY_HANDSHAKES", retry_after_s=1.0),
        LimitError("a proxy's limit", retry_after_s=1.0),
    ],
)
async def test_a_server_that_is_loading_or_full_is_waited_for(
    server: FakeServer, begin: Begin, small: Path, refusal: CallError
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        server.refusal = refusal if len(waits) < 9 else None

    server.lose = [1]
    session = begin(retry=RetryPolicy(connects=2), sleep=sleep)
    report = await session.ask([session.open(small)], "there?").result()
    assert report.answer == "yes to there?" and len(waits) == 9


@pytest.mark.parametrize(
    "end",
    [
        DeadlineError("responses were not read for 30 s", reason="NOT_READ"),
        LimitError("no memory for an announcement", reason="CACHE_FULL", retry_after_s=1.0),
        CancelledError("a proxy went away"),
    ],
)
async def test_a_session_that_ends_for_a_passing_reason_is_replaced(
    server: FakeServer, begin: Begin, small: Path, end: CallError
) -> None:
    async def sleep(_: float) -> None:
        pass

    server.ends = [end]
    session = begin(sleep=sleep)
    report = await session.ask([session.open(small)], "there?").result()
    assert report.answer == "yes to there?" and server.sessions == 2


async def test_a_full_server_is_waited_for_within_the_question_s_time(
    server: FakeServer, begin: Begin, small: Path
) -> None:
    server.lose = [1]

    async def never(seconds: float) -> None:
        server.refusal = LimitError("our own lost session", reason="TOO_MANY_SESSIONS")
        await asyncio.sleep(0)

    session = begin(sleep=never)
    with pytest.raises(LinkLostError, match=r"did not come back within 0\.2 s") as lost:
        await session.ask([session.open(small)], "there?", timeout_s=0.2).result()
    assert lost.value.reason == NOT_BACK


async def test_a_question_is_not_sent_over_a_link_that_was_lost_while_it_waited(
    server: FakeServer, begin: Begin, small: Path
) -> None:
    session = begin()
    seen = session.open(small)
    await session.connect()
    link = session._connection.current
    assert link is not None
    link.end(LinkLostError("gone"))
    question = PendingQuestion(pictures=[seen], text="?")
    with pytest.raises(LinkLostError, match="gone"):
        session._submit(question, Submission(link=link, request=1, events=asyncio.Queue()), Deadline(None))
    assert not question.uploads and not link.pictures
    assert (await session.ask([seen], "and now?").result()).answer == "yes to and now?"


@pytest.mark.parametrize(
    "refusal", [MismatchError("another model", reason="MODEL_MISMATCH"), TokenError(), LimitError("full")]
)
async def test_a_refused_handshake(server: FakeServer, begin: Begin, small: Path, refusal: Exception) -> None:
    server.refusal = refusal  # type: ignore[assignment]
    session = begin()
    with pytest.raises(type(refusal), match=str(refusal)):
        await session.ask([session.open(small)], "may I?").result()
    assert server.sessions == 1


async def test_another_model_is_noticed_even_if_the_server_does_not_mind(server: FakeServer, begin: Begin) -> None:
    server.model_id = "another"
    with pytest.raises(MismatchError, match="the server runs model another"):
        await begin().connect()


async def test_an_error_of_one_question_leaves_the_session(server: FakeServer, begin: Begin, small: Path) -> None:
    server.fail = CorruptPacketError("broken")
    session = begin()
    picture = session.open(small)
    with pytest.raises(CorruptPacketError, match="broken"):
        await session.ask([picture], "fail").result()
    assert (await session.ask([picture], "proceed").result()).answer == "yes to proceed"
    assert server.sessions == 1 and "cancel" not in server.kinds()


async def test_giving_up_cancels_on_the_server(server: FakeServer, begin: Begin, small: Path) -> None:
    server.answering.clear()
    session = begin()
    asking = asyncio.create_task(session.ask([session.open(small)], "slow?").result())
    await server.until(lambda: "ask" in server.kinds())
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    async with asyncio.timeout(20):
        await server.cancelled.wait()
    assert server.received("cancel")[0].request == server.received("ask")[0].request


async def _two_asked_and_one_waiting(
    server: FakeServer, begin: Begin, small: Path
) -> tuple[Session, list[asyncio.Task[Report]]]:
    server.answering.clear()
    server.stopping.clear()
    session = begin()
    picture = session.open(small)
    asking = [asyncio.create_task(session.ask([picture], f"number {n}").result()) for n in range(3)]
    await server.until(lambda: server.kinds().count("ask") == 2)
    return session, asking


async def test_a_cancelled_question_keeps_its_place_until_the_server_has_stopped(
    server: FakeServer, begin: Begin, small: Path
) -> None:
    _, asking = await _two_asked_and_one_waiting(server, begin, small)
    asking[0].cancel()
    await server.until(lambda: "cancel" in server.kinds())
    assert server.kinds().count("ask") == 2, "the server allows two"
    server.stopping.set()
    await server.until(lambda: server.kinds().count("ask") == 3)
    server.answering.set()
    assert [report.answer for report in await asyncio.gather(*asking[1:])] == ["yes to number 1", "yes to number 2"]


async def test_a_lost_link_frees_the_places_of_cancelled_questions(
    server: FakeServer, begin: Begin, small: Path
) -> None:
    session, asking = await _two_asked_and_one_waiting(server, begin, small)
    for task in asking[:2]:
        task.cancel()
    await server.until(lambda: server.kinds().count("cancel") == 2)
    server.answering.set()
    assert session._connection.current is not None
    session._connection.current.end(LinkLostError("cut here"))
    async with asyncio.timeout(20):
        assert (await asking[2]).answer == "yes to number 2"


async def test_time_limit(server: FakeServer, begin: Begin, small: Path) -> None:
    server.answering.clear()
    session = begin()
    with pytest.raises(DeadlineError, match=r"no answer within 0\.05 s"):
        await session.ask([session.open(small)], "slow?", timeout_s=0.05).result()


async def test_questions_at_the_same_time_wait_for_a_free_place(server: FakeServer, begin: Begin, small: Path) -> None:
    server.answering.clear()
    session = begin()
    picture = session.open(small)
    asking = [asyncio.create_task(session.ask([picture], f"number {n}").result()) for n in range(3)]
    await server.until(lambda: server.kinds().count("ask") == 2)
    server.answering.set()
    reports = await asyncio.gather(*asking)
    assert [report.answer for report in reports] == [f"yes to number {n}" for n in range(3)]
    assert sum(report.bytes_picture for report in reports) == 100


async def test_limits_are_named_before_anything_is_sent(server: FakeServer, begin: Begin, wide: Path) -> None:
    server.limits.views_per_picture = 20
    session = begin()
    with pytest.raises(LimitError, match="21 views of one picture, this server allows 20; scale"):
        await session.ask([session.open(wide)], "too many?").result()
    with pytest.raises(LimitError, match="200 new tokens, this server allows 100"):
        await session.ask([], "too long?", sampling=Sampling(max_tokens=200)).result()
    assert server.kinds() == ["hello"]


async def test_a_packet_beyond_the_limit(server: FakeServer, begin: Begin, small: Path) -> None:
    session = begin(FakeEncoder(packet_bytes=1001))
    with pytest.raises(LimitError, match="1001 bytes, this server allows 1000"):
        await session.ask([session.open(small)], "too large?").result()
    await server.until(lambda: "cancel" in server.kinds())


def test_pauses_are_bounded_however_many_failures_there_were() -> None:
    assert 3 < RetryPolicy().pause_s(10**6) < 5


async def test_used_up_numbers_open_another_session(server: FakeServer, begin: Begin, small: Path) -> None:
    server.fail = LimitError("10000 questions", reason="SESSION_USED_UP")

    async def sleep(_: float) -> None:
        server.fail = None

    session = begin(sleep=sleep)
    assert (await session.ask([session.open(small)], "fail?").result()).answer == "yes to fail?"
    assert server.sessions == 2


async def test_a_failing_encoder_ends_the_question(server: FakeServer, begin: Begin, small: Path) -> None:
    def burn(_: int) -> None:
        raise RuntimeError("out of memory")

    session = begin(FakeEncoder(before_view=burn))
    with pytest.raises(EncoderError, match=r"not enough memory for .*small\.png; end other programs"):
        await session.ask([session.open(small)], "well?").result()
    await server.until(lambda: "cancel" in server.kinds())


@pytest.mark.parametrize(
    ("name", "trusted", "message"),
    [("localhost", False, "CERTIFICATE_VERIFY_FAILED"), ("elsewhere", True, "Hostname"), ("", False, "WRONG_VERSION")],
)
async def test_a_server_that_is_not_trusted_is_named_and_not_tried_again(
    tmp_path: Path, name: str, trusted: bool, message: str
) -> None:
    ours, other = write(tmp_path / "ours", [name or "localhost"]), write(tmp_path / "other", ["localhost"])
    pair = {"certificate": ours.certificate.read_bytes(), "key": ours.key.read_bytes()} if name else {}
    running = make_server()
    port = bind(running, "127.0.0.1", 0, ServerSecurity(**pair))
    await running.start()
    security = ClientSecurity(ca=(ours if trusted else other).ca.read_bytes())
    async with Session(Target(address=f"localhost:{port}", security=security), FakeEncoder()) as session:
        with pytest.raises(TlsError, match=rf"{message}.*--tls-ca"):
            await session.connect()
    await running.stop(0)


async def test_a_closed_session_stays_closed(server: FakeServer, begin: Begin, small: Path) -> None:
    server.answering.clear()
    session = begin()
    picture = session.open(small)
    asking = asyncio.create_task(session.ask([picture], "slow?").result())
    await server.until(lambda: "ask" in server.kinds())
    await session.close()
    for late in (asking, session.ask([picture], "late?").result(), session.connect()):
        with pytest.raises(LinkLostError, match="the session was closed"):
            await late
    assert server.sessions == 1


async def test_a_session_closed_while_it_connects_leaves_no_link(
    server: FakeServer, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, opened = begin(), list[Link]()

    async def close_meanwhile(*arguments: Any) -> Link:
        opened.append(await really(*arguments))
        await session.close()
        return opened[0]

    really = Link.open
    monkeypatch.setattr(Link, "open", close_meanwhile)
    with pytest.raises(LinkLostError, match="the session was closed"):
        await session.connect()
    assert opened[0].failure is not None


async def test_pixels_are_freed_with_the_last_view(wide: Path) -> None:
    encoder = EncoderThread(FakeEncoder())
    picture = encoder.open(wide)
    await encoder.view(picture, picture.n_views - 2)
    assert picture.image is not None
    await encoder.view(picture, picture.n_views - 1)
    assert picture.image is None and picture.steps is None
    encoder.close()


async def test_a_closed_encoder_refuses(small: Path) -> None:
    encoder = EncoderThread(FakeEncoder())
    picture = encoder.open(small)
    encoder.close()
    async with asyncio.timeout(20):
        with pytest.raises(EncoderError, match="the encoder was closed"):
            await encoder.view(picture, 0)


@pytest.mark.parametrize("welcomed", [False, True])
async def test_bytes_that_are_not_a_response_end_the_session(small: Path, welcomed: bool) -> None:
    fields = {"limits": pb.Limits(packet_bytes=1000), "picture_key": bytes(16)}
    welcome = pb.Welcome(model_id=FakeEncoder().model_id, codec_id=FakeEncoder().codec_id, **fields)

    async def babble(requests: Any, _: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            hello = request.HasField("hello")
            yield pb.SessionResponse(welcome=welcome).SerializeToString() if hello and welcomed else b"\xff\xff"

    running = make_server()
    handler = grpc.stream_stream_rpc_method_handler(babble, request_deserializer=pb.SessionRequest.FromString)
    service = grpc.method_handlers_generic_handler("tofc.v1.TofcService", {"Session": handler})
    running.add_generic_rpc_handlers((service,))
    port = bind(running, "127.0.0.1", 0)
    await running.start()
    async with Session(Target(address=f"127.0.0.1:{port}"), FakeEncoder()) as session, asyncio.timeout(20):
        with pytest.raises(ReplyError, match="cannot be read"):
            await session.ask([session.open(small)], "what?").result()
    await running.stop(0)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (KeyError("unforeseen"), KeyError, "unforeseen"),  # a defect: nothing has dressed it up
        (ReplyError("out of order"), ReplyError, "^out of order$"),
        (grpc.aio.UsageError("already done"), ReplyError, "gRPC failed .*already done"),
        (MemoryError("8 bytes"), ReplyError, r"not enough memory \(8 bytes\)"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("step", ["_batch", "_dispatch"])  # while writing, while reading
async def test_an_error_on_this_side_ends_the_link(
    server: FakeServer,
    begin: Begin,
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: Exception,
    kind: type[Exception],
    message: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Link, step, fail)
    session = begin()
    async with asyncio.timeout(20):
        with pytest.raises(kind, match=message) as raised:
            await session.ask([session.open(small)], "what?").result()
    assert raised.type is kind


def test_wrong_use(begin: Begin) -> None:
    with pytest.raises(UsageError, match="question is empty"):
        begin().ask([], " \n")
    with pytest.raises(UsageError, match=r"--temperature must be 0 .* to 10, got -1"):
        Sampling(temperature=-1)
