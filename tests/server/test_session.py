"""The rules of a session's stream: a raw client against a server that echoes questions."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from edge_server.conversations import KEPT
from edge_server.fake import CORRUPT, fake_backend
from edge_server.picture_cache import OVERHEAD_BYTES
from edge_server.settings import MAX_TURNS, SessionLimits
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import picture_id, until
from tofc.model.generation import GenerationConfig
from tofc.rpc.channel import MAX_UP_BYTES
from tofc.v1 import tofc_pb2 as pb

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
LIMITS = SessionLimits(
    packet_bytes=8,
    views_per_picture=5,
    pictures_per_question=2,
    questions_in_flight=2,
    question_bytes=20,
    new_tokens=16,
    numbers=4,
)


async def test_a_picture_is_sent_once_and_asked_about_twice(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    welcome = await client.hello()
    assert (welcome.model_id, welcome.codec_id) == ("fake-model", "fake-codec")
    assert welcome.limits == SessionLimits(views_per_picture=37, context_tokens=65536).message
    assert not await client.picture(1, "one", rows=1, columns=2)
    for index, packet in enumerate((b"A", b"B", b"whole ")):
        await client.view(1, index, packet)
    await client.ask(1, "is there a cat?", refs=(1,))
    text, done = await client.answer(1)
    assert text == "ABwhole is there a cat?"
    assert done.finish_reason == pb.FINISH_REASON_STOP
    assert (done.usage.visual_tokens, done.usage.prompt_tokens, done.usage.new_tokens) == (8, 23, 23)
    timing = done.timing
    assert timing.decode_us > 0
    assert 0 < timing.first_token_us <= timing.total_us
    assert 0 <= timing.prefill_us + timing.wait_us <= timing.total_us
    await client.ask(2, "a dog?", refs=(1, 1))
    assert (await client.answer(2))[0] == "ABwhole ABwhole a dog?"
    await client.end()


async def test_views_in_any_order_and_twice(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    await client.hello()
    await client.picture(5, "p", rows=2, columns=1)
    for index, packet in ((2, b"3"), (0, b"1"), (0, b"1"), (1, b"2"), (1, b"2")):
        await client.view(5, index, packet)
    await client.ask(1, "?", refs=(5,))
    assert (await client.answer(1))[0] == "123?"


async def test_a_question_waits_for_views_under_way(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    await client.hello()
    await client.picture(1, "p")
    await client.ask(1, "?", refs=(1,))
    await client.view(1, 0, b"late")
    text, done = await client.answer(1)
    assert text == "late?"
    assert done.timing.wait_us > 0


async def test_two_clients_fill_and_share_one_picture(serve: Serve, connect: Connect) -> None:
    server = await serve()
    one, two, three = connect(server), connect(server), connect(server)
    for client in (one, two, three):
        await client.hello()
    assert not await one.picture(1, "shared", rows=1, columns=1)
    assert not await two.picture(7, "shared", rows=1, columns=1)
    await one.view(1, 0, b"a")
    await two.ask(1, "?", refs=(7,))
    await one.end()  # its view stays, because another session completes the picture
    await two.view(7, 1, b"b")
    assert (await two.answer(1))[0] == "ab?"
    assert await three.picture(2, "shared", rows=1, columns=1)
    await three.ask(1, "!", refs=(2,))
    assert (await three.answer(1))[0] == "ab!"
    await three.send(pictures=[pb.Picture(ref=3, picture_id=picture_id("shared"), rows=2, columns=2)])
    await three.failed(PRECONDITION, "LAYOUT_MISMATCH")


async def test_a_picture_without_its_sender_makes_room_for_another_layout(serve: Serve, connect: Connect) -> None:
    server = await serve()
    one, two = connect(server), connect(server)
    await one.hello()
    await one.picture(1, "half", rows=1, columns=1)
    await one.view(1, 0, b"a")
    await one.end()
    half = server.service.pictures.get(picture_id("half"))
    assert half is not None and half.view_indexes == [0]
    await two.hello()
    assert not await two.picture(1, "half")  # with another layout, which is no mismatch any more
    assert half.evictable and server.service.pictures.get(picture_id("half")) is not half


async def test_views_that_arrived_before_a_lost_link_are_not_sent_again(serve: Serve, connect: Connect) -> None:
    server = await serve()
    one, two, other = connect(server), connect(server), connect(server)
    for client in (one, two, other):
        await client.hello()
    await one.picture(1, "half", rows=1, columns=2)
    for index in (0, 2):
        await one.view(1, index, b"abc"[index : index + 1])
    half = server.service.pictures.get(picture_id("half"))
    assert half is not None
    await until(lambda: half.view_indexes == [0, 2])
    await one.channel.close()
    await until(lambda: half.evictable)
    announced = pb.Picture(ref=1, picture_id=picture_id("half"), rows=1, columns=2, want_state=True)
    await two.send(pictures=[announced])
    state = await two.expect("picture_state")
    assert (state.complete, list(state.views)) == (False, [0, 2]) and not state.HasField("image")
    await two.ask(1, "?", refs=(1,))
    await two.view(1, 1, b"b")
    assert (await two.answer(1))[0] == "abc?"
    await other.send(pictures=[announced])
    state = await other.expect("picture_state")
    assert state.complete and not state.views


async def test_views_that_a_lost_link_left_make_room(serve: Serve, connect: Connect) -> None:
    server = await serve(cache_bytes=3 * OVERHEAD_BYTES)
    for name in ("a", "b"):
        client = connect(server)
        await client.hello()
        await client.picture(1, name, rows=1, columns=1)
        await client.view(1, 0, bytes(150))
        held = server.service.pictures.get(picture_id(name))
        assert held is not None
        await until(lambda held=held: held.view_indexes)
        await client.channel.close()
        await until(lambda held=held: held.evictable)
    assert len(server.service.pictures) == 2
    client = connect(server)
    await client.hello()
    assert not await client.picture(1, "b", rows=2, columns=1), "another layout: what is left is of no use"
    assert not await client.picture(2, "c", rows=1, columns=1)
    assert not await client.picture(3, "d", rows=1, columns=1)
    assert server.service.pictures.get(picture_id("a")) is None
    assert server.service.pictures.size_bytes == 3 * OVERHEAD_BYTES


async def test_acknowledgements_are_sent_together(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    await client.hello()
    await client.picture(1, "p", rows=2, columns=3)
    await client.picture(2, "q", rows=1, columns=1)
    for index in range(3):
        await client.view(1, index, b"x")
    await client.view(2, 1, b"y")  # the fourth that is not acknowledged
    for view in ((1, 0), (1, 1), (1, 2), (2, 1)):
        await client.taken(*view)
    await client.view(2, 0, b"y")  # completes its picture
    await client.taken(2, 0)
    await client.view(1, 3, b"x")  # not acknowledged
    await client.view(2, 0, b"y")  # of a picture that is complete already
    await client.call.done_writing()
    assert await client.receive() is grpc.aio.EOF
    assert client.acknowledged.count((2, 0)) == 2


async def test_a_new_picture_is_announced_without_a_reply(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    await client.hello()
    announced = pb.Picture(ref=1, picture_id=picture_id("p"))
    await client.send(pictures=[announced])
    await client.view(1, 0, b"p")
    await client.taken(1, 0)  # nothing was sent before it
    await client.send(pictures=[announced])
    assert (await client.expect("picture_state")).complete


async def test_parts_of_a_request_are_handled_in_order(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    await client.send(
        hello={"model_id": "fake-model", "codec_id": "fake-codec"},
        pictures=[{"ref": 1, "picture_id": picture_id("p")}, {"ref": 2, "picture_id": picture_id("q")}],
        views=[{"ref": 1, "packets": [b"p"]}, {"ref": 2, "packets": [b"q"]}],
        asks=[{"request": 1, "refs": [2, 1], "question": "?"}, {"request": 2}],
        cancels=[{"request": 2}],
    )
    await client.expect("welcome")
    texts, reasons = {1: "", 2: ""}, {}
    while len(reasons) < 2:
        response = await client.receive()
        if response.HasField("token"):
            texts[response.token.request] += response.token.text
        else:
            reasons[response.done.request] = response.done.finish_reason
    assert texts == {1: "qp?", 2: ""}
    assert reasons == {1: pb.FINISH_REASON_STOP, 2: pb.FINISH_REASON_CANCELLED}


async def test_a_part_of_unknown_kind_is_refused(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    await client.hello()
    call = pb.SessionRequest.FromString(b"\x2a\x02\x08\x01" + b"\x7a\x00")  # question 1, and field 15
    await client.call.write(call)
    assert "(15)" in await client.failed(INVALID, "UNKNOWN_REQUEST")


@pytest.mark.parametrize("temperature", [0.0, 0.7])
async def test_welcome_has_the_picture_key_and_whether_answers_are_sampled(
    temperature: float, serve: Serve, connect: Connect
) -> None:
    servers = [await serve(fake_backend(generation_config=GenerationConfig(temperature=temperature))) for _ in range(2)]
    one, same, other = [await connect(server).hello() for server in (servers[0], *servers)]
    assert len(one.picture_key) == 16 and one.picture_key == same.picture_key != other.picture_key
    assert one.samples_by_default == (temperature > 0)


async def test_text_comes_in_whole_characters(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    await client.hello()
    await client.ask(1, "größer 象 🐘!", sampling=pb.Sampling(max_tokens=1000))
    pieces = []
    while (response := await client.receive()).HasField("token"):
        pieces.append(response.token.text)
    assert "".join(pieces) == "größer 象 🐘!"
    assert len(pieces) == len("größer 象 🐘!")
    await client.ask(2, "🐘🐘", sampling=pb.Sampling(max_tokens=6))
    text, done = await client.answer(2)
    assert text == "🐘"  # two more bytes were generated, not a whole character
    assert done.finish_reason == pb.FINISH_REASON_LENGTH
    assert done.usage.new_tokens == 6


@pytest.mark.parametrize(
    "theirs, reason",
    [(("other", "fake-codec"), "MODEL_MISMATCH"), (("fake-model", ""), "CODEC_MISMATCH")],
)
async def test_another_model_or_codec_is_refused(
    theirs: tuple[str, str], reason: str, serve: Serve, connect: Connect
) -> None:
    client = connect(await serve())
    await client.send(hello=pb.Hello(client_version="0.9", model_id=theirs[0], codec_id=theirs[1]))
    message = await client.failed(PRECONDITION, reason)
    assert "update the server" in message and "Update the device" in message
    assert ("other" in message and "fake-model" in message) or ("none" in message and "fake-codec" in message)


async def test_a_session_begins_with_one_hello(serve: Serve, connect: Connect) -> None:
    server = await serve()
    client = connect(server)
    await client.ask(1, "?")
    await client.failed(PRECONDITION, "HELLO_FIRST")
    client = connect(server)
    await client.hello()
    await client.send(hello=pb.Hello())
    await client.failed(PRECONDITION, "HELLO_TWICE")
    client = connect(server)
    await client.hello()
    await client.send()
    await client.failed(INVALID, "UNKNOWN_REQUEST")
    client = connect(server)
    await client.end()  # a stream without any request is not an error


async def test_a_client_that_sends_no_hello_is_disconnected(serve: Serve, connect: Connect) -> None:
    client = connect(await serve(hello_timeout_s=0.01))
    await client.call.wait_for_connection()
    await client.not_heard(grpc.StatusCode.DEADLINE_EXCEEDED, "HELLO_MISSING")


async def test_bytes_that_are_not_a_request_end_the_session(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    call = client.channel.stream_stream("/tofc.v1.TofcService/Session")()
    await call.write(b"\xff\xff\xff\xff")
    error = pb.SessionResponse.FromString(await call.read()).error
    assert (error.request, error.reason) == (0, "UNKNOWN_REQUEST")
    with pytest.raises(grpc.aio.AioRpcError):
        await call.read()
    assert await call.code() == INVALID


PICTURE = {"ref": 1, "picture_id": picture_id("p"), "rows": 1, "columns": 1}


@pytest.mark.parametrize(
    "request_, status, reason",
    [
        ({"pictures": [{**PICTURE, "ref": 2, "picture_id": b"short"}]}, INVALID, "PICTURE_ID_INVALID"),
        ({"pictures": [{**PICTURE, "ref": 2, "columns": 0}]}, INVALID, "LAYOUT_INVALID"),
        ({"pictures": [{**PICTURE, "ref": 2, "rows": 5}]}, INVALID, "TOO_MANY_VIEWS"),
        ({"pictures": [{**PICTURE, "ref": 2, "rows": 2**32 - 1, "columns": 2**32 - 1}]}, INVALID, "TOO_MANY_VIEWS"),
        ({"pictures": [{**PICTURE, "picture_id": picture_id("q")}]}, grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE_REF"),
        ({"views": [{"ref": 2, "index": 0, "packets": [b"x"]}]}, grpc.StatusCode.NOT_FOUND, "PICTURE_UNKNOWN"),
        ({"views": [{"ref": 1, "index": 2, "packets": [b"x"]}]}, INVALID, "VIEW_INDEX_INVALID"),
        ({"views": [{"ref": 1, "index": 0, "packets": [b"123456789"]}]}, INVALID, "PACKET_TOO_LARGE"),
        ({"views": [{"ref": 1, "index": 0, "packets": [CORRUPT]}]}, grpc.StatusCode.DATA_LOSS, "CORRUPT_PACKET"),
        ({"views": [{"ref": 1, "index": 0, "packets": [b""]}]}, grpc.StatusCode.DATA_LOSS, "CORRUPT_PACKET"),
        ({"views": [{"ref": 1, "index": 0}]}, grpc.StatusCode.DATA_LOSS, "CORRUPT_PACKET"),
        ({"cancels": [{"request": 0}]}, grpc.StatusCode.NOT_FOUND, "QUESTION_UNKNOWN"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_broken_rule_ends_the_session(
    request_: dict[str, Any], status: grpc.StatusCode, reason: str, serve: Serve, connect: Connect
) -> None:
    server = await serve(limits=LIMITS)
    client = connect(server)
    await client.hello()
    await client.picture(1, "p", rows=1, columns=1)
    await client.send(**request_)
    await client.failed(status, reason)
    client = connect(server)  # no other session is affected
    await client.hello()


USER, ASSISTANT, SYSTEM = pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_SYSTEM


@pytest.mark.parametrize(
    "ask, status, reason",
    [
        ({"refs": [2]}, grpc.StatusCode.NOT_FOUND, "PICTURE_UNKNOWN"),
        ({"refs": [1, 1, 1]}, INVALID, "TOO_MANY_PICTURES"),
        ({"history": [{"role": USER}, {"role": SYSTEM}]}, INVALID, "TURNS_INVALID"),
        ({"history": [{"role": 9}]}, INVALID, "TURNS_INVALID"),
        ({"history": [{"role": USER}] * MAX_TURNS}, INVALID, "QUESTION_TOO_LONG"),
        ({"history": [{"role": USER, "text": "ä" * 5}], "question": "ä" * 6}, INVALID, "QUESTION_TOO_LONG"),
        ({"sampling": {"max_tokens": 17}}, INVALID, "TOO_MANY_TOKENS"),
        ({"sampling": {"temperature": -1.0}}, INVALID, "INVALID_REQUEST"),
        ({"sampling": {"temperature": float("nan")}}, INVALID, "INVALID_REQUEST"),
        ({"sampling": {"top_p": 1.5}}, INVALID, "INVALID_REQUEST"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_question_that_is_refused_leaves_the_session_open(
    ask: dict[str, Any], status: grpc.StatusCode, reason: str, serve: Serve, connect: Connect
) -> None:
    client = connect(await serve(limits=LIMITS))
    await client.hello()
    await client.picture(1, "p")
    await client.view(1, 0, b"p")
    await client.send(asks=[{"request": 3, "question": "?", **ask}])
    error = await client.expect("error")
    assert (error.request, error.status, error.reason) == (3, status.value[0], reason)
    assert error.message
    await client.ask(4, "?", refs=(1,))
    assert (await client.answer(4))[0] == "p?"


async def test_a_system_turn_and_earlier_turns_are_read(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    await client.hello()
    turns = [(SYSTEM, "s"), (USER, "a"), (ASSISTANT, "b")]
    history = [pb.Turn(role=role, text=text) for role, text in turns]
    await client.ask(1, "c", history=history)
    assert (await client.answer(1))[0] == "sabc"


async def test_a_question_continues_another(serve: Serve, connect: Connect) -> None:
    client = connect(await serve(limits=SessionLimits(question_bytes=11)))
    await client.hello()
    await client.ask(1, "a", history=[pb.Turn(role=SYSTEM, text="s")])
    assert (await client.answer(1))[0] == "sa"
    await client.ask(2, "b", previous_request=1)
    assert (await client.answer(2))[0] == "sasab"
    await client.ask(3, "c", previous_request=1, history=[pb.Turn(role=USER, text="-")])
    assert (await client.answer(3))[0] == "sasa-c"  # a conversation that another question continued does not contain it
    for after, ask, reason in (
        (1, {"history": [pb.Turn(role=SYSTEM)]}, "TURNS_INVALID"),  # no longer the first turn
        (2, {"question": "abc"}, "QUESTION_TOO_LONG"),
        (3, {}, "CONVERSATION_GONE"),  # 12 bytes with its answer, so that nothing could follow
        (4, {}, "CONVERSATION_GONE"),
    ):
        await client.send(asks=[{"request": 10 * after + len(ask), "previous_request": after, **ask}])
        assert (await client.expect("error")).reason == reason
    for number in range(50, 50 + KEPT):
        await client.ask(number, "x")
        await client.answer(number)
    await client.ask(60, "d", previous_request=1)
    error = await client.expect("error")
    assert (error.status, error.reason) == (5, "CONVERSATION_GONE")


async def test_a_conversation_that_cannot_be_continued_is_not_kept(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    await client.hello()
    for number, earlier in enumerate((MAX_TURNS - 3, MAX_TURNS - 2), 1):
        await client.ask(number, "a", history=[pb.Turn(role=USER)] * earlier)
        await client.answer(number)
    await client.ask(3, "b", previous_request=1)
    assert (await client.answer(3))[0] == "aab"
    await client.ask(4, "b", previous_request=2)
    assert (await client.expect("error")).reason == "CONVERSATION_GONE"


async def test_a_number_is_used_once(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    await client.hello()
    await client.ask(1, "one")
    assert (await client.answer(1))[0] == "one"
    await client.ask(1, "two")
    error = await client.expect("error")
    assert (error.request, error.reason) == (1, "DUPLICATE_REQUEST")
    await client.send(cancels=[pb.Cancel(request=1)])  # crossed its Done: nothing happens
    await client.send(cancels=[pb.Cancel(request=2)])
    error = await client.expect("error")
    assert (error.request, error.reason) == (2, "QUESTION_UNKNOWN")


async def test_numbers_of_a_session_run_out(serve: Serve, connect: Connect) -> None:
    client = connect(await serve(limits=LIMITS))
    await client.hello()
    for number in range(1, 5):
        await client.ask(number, "?")
        await client.answer(number)
        await client.picture(number, str(number))
    await client.ask(5, "?")
    assert (await client.expect("error")).reason == "SESSION_USED_UP"
    await client.send(pictures=[pb.Picture(ref=5, picture_id=picture_id("5"))])
    await client.failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "SESSION_USED_UP")


async def test_a_message_beyond_the_transports_cap_never_arrives(serve: Serve) -> None:
    server = await serve()
    large = grpc.aio.insecure_channel(server.address, options=[("grpc.max_send_message_length", -1)])
    async with large:
        call = large.stream_stream("/tofc.v1.TofcService/Session")()
        await call.write(bytes(MAX_UP_BYTES + 1))
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        assert await call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_prompt_must_fit_the_model(serve: Serve, connect: Connect) -> None:
    from edge_server.engine.fake import FakeEngine

    client = connect(await serve(fake_backend(engine=FakeEngine(lambda prompt: [65], max_positions=10))))
    await client.hello()
    await client.ask(1, "123456789")
    assert (await client.answer(1))[0] == "A"
    await client.ask(2, "1234567890")
    error = await client.expect("error")
    assert (error.request, error.reason) == (2, "PROMPT_TOO_LONG")
    assert "10 tokens" in error.message and "at most 9" in error.message


async def test_earlier_turns_must_leave_room_for_an_answer(serve: Serve, connect: Connect) -> None:
    from edge_server.engine.fake import FakeEngine

    client = connect(await serve(fake_backend(engine=FakeEngine(lambda prompt: [65], max_positions=80))))
    await client.hello()
    turns = [pb.Turn(role=USER, text="a" * 30), pb.Turn(role=ASSISTANT, text="b" * 30)]
    await client.ask(1, "c" * 10, history=turns)
    assert (await client.answer(1))[0] == "A"
    await client.ask(2, "c" * 11, history=turns)
    error = await client.expect("error")
    assert (error.request, error.reason) == (2, "PROMPT_TOO_LONG")
    assert "at most 70" in error.message
    await client.ask(3, "c" * 11, history=turns, sampling=pb.Sampling(max_tokens=1))
    assert (await client.answer(3))[0] == "A"
