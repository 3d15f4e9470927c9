"""What a chat needs beyond a question: places of pictures, texts that end an answer, a budget for thinking apart."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from edge_server.engine.fake import FakeEngine
from edge_server.fake import FakeAssembler, fake_backend, prompt_bytes
from edge_server.reasoning import Delta
from edge_server.stop_text import StopText
from tests.server.conftest import Connect, Serve
from tests.server.test_chat import THINK_TOKENS, received
from tofc.model.prompt import Turn
from tofc.v1 import tofc_pb2 as pb

USER, ASSISTANT = pb.ROLE_USER, pb.ROLE_ASSISTANT


def thinker(answer: Any, **engine: Any) -> Any:
    made = FakeEngine(lambda prompt: list(answer(prompt_bytes(prompt))), **engine)
    return fake_backend(engine=made, think_tokens=THINK_TOKENS), made


async def test_pictures_are_shown_where_the_question_says(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Turn]] = []
    prompt = FakeAssembler.prompt

    def recording(self: FakeAssembler, turns: Any, pictures: Any, max_rows: int) -> Any:
        asked.append(list(turns))
        return prompt(self, turns, pictures, max_rows)

    monkeypatch.setattr(FakeAssembler, "prompt", recording)
    client = connect(await serve())
    await client.hello()
    for ref in (1, 2):
        await client.picture(ref, f"p{ref}")
        await client.view(ref, 0, b"p")
        await client.taken(ref, 0)
    places = [pb.Place(turn=0, offset=0), pb.Place(turn=2, offset=len("größe: ".encode()))]
    history = [pb.Turn(role=USER, text="what?"), pb.Turn(role=ASSISTANT, text="a cat")]
    await client.ask(1, "größe: which?", refs=(1, 2), history=history, places=places)
    await client.answer(1)
    assert [turn.pictures for turn in asked[-1]] == [(0,), (), (7,)]
    assert asked[-1][2].segments == ["größe: ", None, "which?"]
    # a question that continues it states all places again, by the turns of the whole conversation
    await client.ask(2, "and?", refs=(2,), previous_request=1, places=[pb.Place(turn=4, offset=4)])
    await client.answer(2)
    assert [turn.pictures for turn in asked[-1]] == [(), (), (), (), (4,)]


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([(0, 0)], "a place for each of its 2 pictures, got 1"),
        ([(0, 2), (0, 0)], "ascending order"),
        ([(0, 0), (1, 0)], "got turn 1 of 1"),
        ([(0, 0), (0, 9)], "got byte 9"),
        ([(0, 0), (0, 1)], "got byte 1"),  # within a character
    ],
)
async def test_a_place_that_is_none_is_refused(
    serve: Serve, connect: Connect, places: list[tuple[int, int]], message: str
) -> None:
    client = connect(await serve())
    await client.hello()
    for ref in (1, 2):
        await client.picture(ref, f"p{ref}")
    sent = [pb.Place(turn=turn, offset=offset) for turn, offset in places]
    await client.ask(1, "äh", refs=(1, 2), places=sent)
    error = await client.expect("error")
    assert (error.request, error.reason) == (1, "PLACES_INVALID") and message in error.message, error
    assert error.status == grpc.StatusCode.INVALID_ARGUMENT.value[0]


async def test_an_answer_ends_before_a_stop_text(serve: Serve, connect: Connect) -> None:
    backend, _ = thinker(lambda prompt: prompt)
    client = connect(await serve(backend))
    await client.hello()
    await client.ask(1, "<think.>one.two", stop=["never", ".t"], thinking=True)
    pieces, done = await received(client, 1)
    assert pieces == [("thinking", "think."), ("answer", "one")]
    assert done.finish_reason == pb.FINISH_REASON_STOP
    await client.ask(2, "one.two", stop=["two!"])
    assert (await client.answer(2))[0] == "one.two"  # what was held back is sent at the end
    await client.ask(3, "x", stop=[""])
    error = await client.expect("error")
    assert error.reason == "STOP_INVALID" and "1 to 256 bytes" in error.message


def test_no_part_of_a_stop_text_is_sent_however_it_arrives() -> None:
    text = "aab aac aab!"
    for size in (1, 2, 3, 5, len(text)):
        stop = StopText(["aac", "zz"])
        pieces = [Delta(text=text[at : at + size]) for at in range(0, len(text), size)]
        sent = [one for piece in pieces for one in stop.push([piece])] + stop.finish([])
        assert "".join(one.text for one in sent) == "aab " and stop.found
    stop = StopText(["aac"])
    assert "".join(one.text for one in [*stop.push([Delta(text="aa")]), *stop.finish([])]) == "aa" and not stop.found


async def test_thinking_has_a_budget_of_its_own(serve: Serve, connect: Connect) -> None:
    """A model that thinks for ever is stopped: `</think>` is added, and the answer follows from there."""
    backend, engine = thinker(lambda prompt: b"the answer" if prompt.endswith(b">") else b"<" + b"hm" * 50)
    client = connect(await serve(backend))
    await client.hello()
    await client.ask(1, "?", sampling=pb.Sampling(max_tokens=3), thinking_budget=11, thinking=True)
    pieces, done = await received(client, 1)
    assert pieces == [("thinking", "hm" * 5), ("answer", "the")]
    assert (done.usage.new_tokens, done.usage.thinking_tokens) == (15, 12)  # </think> is counted
    assert done.finish_reason == pb.FINISH_REASON_LENGTH and not done.unanswered
    assert prompt_bytes(engine.prompts[-1]) == b"?<" + b"hm" * 5 + b">"


async def test_thinking_that_ends_within_its_budget_leaves_all_tokens_to_the_answer(
    serve: Serve, connect: Connect
) -> None:
    backend, engine = thinker(lambda prompt: b"<hm>four")
    client = connect(await serve(backend))
    await client.hello()
    for request, most, answer, reason in ((1, 5, "four", "STOP"), (2, 2, "fo", "LENGTH"), (3, 1, "f", "LENGTH")):
        await client.ask(request, "?", sampling=pb.Sampling(max_tokens=most), thinking_budget=100)
        text, done = await client.answer(request)
        assert (text, done.finish_reason) == (answer, pb.FinishReason.Value(f"FINISH_REASON_{reason}")), request
    assert len(engine.prompts) == 3


async def test_a_budget_of_zero_closes_thinking_that_the_prompt_opens(serve: Serve, connect: Connect) -> None:
    backend, _ = thinker(lambda prompt: b"yes" if prompt.endswith(b">") else b"endless")
    client = connect(await serve(backend))
    await client.hello()
    await client.ask(1, "?<", thinking_budget=0)
    text, done = await client.answer(1)
    assert (text, done.usage.new_tokens, done.usage.thinking_tokens) == ("yes", 4, 1)


async def test_a_budget_costs_a_model_that_does_not_think_nothing(serve: Serve, connect: Connect) -> None:
    engine = FakeEngine(lambda prompt: list(prompt_bytes(prompt)))
    client = connect(await serve(fake_backend(engine=engine)))
    await client.hello()
    await client.ask(1, "plain", sampling=pb.Sampling(max_tokens=3), thinking_budget=100)
    text, done = await client.answer(1)
    assert (text, done.usage.new_tokens, engine.steps) == ("pla", 3, 3)


async def test_a_budget_leaves_room_for_the_answer_in_the_context(serve: Serve, connect: Connect) -> None:
    def answer(prompt: bytes) -> bytes:
        return b"ok" if prompt.endswith(b">") else b"<" + b"." * 100

    backend, engine = thinker(answer, max_positions=20)
    client = connect(await serve(backend))
    welcome = await client.hello()
    assert (welcome.limits.context_tokens, welcome.limits.stop_texts) == (20, 4)
    await client.ask(1, "?", sampling=pb.Sampling(max_tokens=4), thinking_budget=1000)
    assert (await client.answer(1))[0] == "ok"
    assert max(len(prompt.embeds) for prompt in engine.prompts) == 20 - 4


async def test_an_answer_without_a_limit_leaves_room_for_thinking_in_the_context(
    serve: Serve, connect: Connect
) -> None:
    """The server's own limit of new tokens may be as long as the context; an eighth of it is kept for the answer."""

    def answer(prompt: bytes) -> bytes:
        return b"ok" if prompt.endswith(b">") else b"<" + b"." * 100

    backend, engine = thinker(answer, max_positions=32)
    client = connect(await serve(backend))
    assert (await client.hello()).limits.new_tokens >= 32
    await client.ask(1, "?", thinking_budget=1000)
    text, done = await client.answer(1)
    assert (text, done.usage.thinking_tokens) == ("ok", 32 - 1 - 4), "</think> is counted"
    assert max(len(prompt.embeds) for prompt in engine.prompts) == 32 - 4
