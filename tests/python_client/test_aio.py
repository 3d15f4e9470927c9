"""`AsyncClient`: the same names, with `await` and `async for`."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from tests.client.conftest import FakeServer
from tests.client.conftest import server as fake_server
from tests.e2e.conftest import MODEL, PICTURES, ServerThread
from tests.python_client.conftest import DOG, SIGN
from tofc import AsyncClient, CancelledError, DeadlineError, LimitError, UnavailableError, UsageError
from tofc.client import Answer, AsyncAnswerStream, Piece
from tofc.model.checkpoint import ModelIdentity

fake = fake_server  # a fixture is known by its name here
ENDLESS: dict[str, Any] = {"temperature": 5.0, "seed": 1, "max_tokens": 1000}


async def test_answers_streams_and_conversations(server: ServerThread, example: Path) -> None:
    async with AsyncClient(server.address) as edge:
        await edge.connect(timeout_s=30)
        picture = await edge.picture(example)
        answer = await picture.ask(SIGN)
        assert (answer.text, answer.finish_reason) == ("42", "stop")
        stream = picture.ask("what is this?", stream=True, **ENDLESS)
        text = "".join([piece.text async for piece in stream])
        assert text == (await stream.result()).text
        other = await edge.picture(PICTURES / "picture-00.jpg")
        assert (await edge.ask([picture, other], DOG)).usage.visual_tokens > answer.usage.visual_tokens
        assert (await edge.ask([picture], DOG, stream=True).result()).text == "yes"
        chat = edge.chat([picture])
        assert [(await chat.ask(question)).text for question in (SIGN, DOG)] == ["42", "yes"]
        assert chat.turns == ((SIGN, "42"), (DOG, "yes"))
        assert picture.chat().turns == ()


async def test_questions_at_once(server: ServerThread, example: Path) -> None:
    async with AsyncClient(server.address) as edge:
        picture = await edge.picture(example)
        answers = await asyncio.gather(*(picture.ask(question) for question in [SIGN, DOG] * 5))
    assert [answer.text for answer in answers] == ["42", "yes"] * 5


async def test_a_stream_is_given_up(server: ServerThread, example: Path) -> None:
    async with AsyncClient(server.address) as edge:
        picture = await edge.picture(example)
        async with picture.ask("what is this?", stream=True, **ENDLESS) as stream:
            await anext(stream)
        with pytest.raises(CancelledError, match="given up"):
            await stream.result()
        forgotten = picture.ask("what is this?", stream=True, **ENDLESS)
        await anext(forgotten)
        del forgotten, stream
        gc.collect()
        asking = asyncio.create_task(picture.ask("what is this?", **ENDLESS))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert (await picture.ask(DOG)).text == "yes"


async def test_refusals(server: ServerThread, example: Path) -> None:
    edge = AsyncClient(server.address)
    picture = await edge.picture(example)
    with pytest.raises(DeadlineError):
        await picture.ask(DOG, timeout_s=1e-6)
    with pytest.raises(LimitError):
        await picture.ask(DOG, max_tokens=100_000)
    with pytest.raises(UsageError, match="Path is not an opened picture"):
        await edge.ask([example], DOG)  # type: ignore[list-item]
    await edge.close()
    await edge.close()
    with pytest.raises(UsageError, match="closed"):
        await picture.ask(DOG)
    with pytest.raises(UsageError, match="closed"):
        await edge.picture(example)


def test_another_event_loop_is_refused(server: ServerThread, example: Path) -> None:
    edge = AsyncClient(server.address)

    async def ask(close: bool) -> str:
        try:
            return (await (await edge.picture(example)).ask(DOG)).text
        finally:
            if close:
                await edge.close()

    async def both() -> None:
        assert await ask(close=False) == "yes"
        with pytest.raises(UsageError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, ask(close=False))
        await edge.close()

    asyncio.run(both())


# what only a fake server says


async def asked(fake: FakeServer, picture: Path, **options: Any) -> tuple[list[Piece], Answer]:
    origin = ModelIdentity.read(MODEL)
    fake.model_id, fake.codec_id = origin.model_id, origin.codec_id
    async with AsyncClient(f"127.0.0.1:{fake.port}") as edge:
        stream: AsyncAnswerStream = (await edge.picture(picture)).ask("what?", stream=True, **options)
        return [piece async for piece in stream], await stream.result()


async def test_thinking_comes_apart(fake: FakeServer, example: Path) -> None:
    fake.tokens = [{"text": "well", "thinking": True}, {"text": "a dog"}]
    pieces, answer = await asked(fake, example, thinking=True)
    assert pieces == [Piece(text="well", kind="thinking"), Piece(text="a dog")]
    assert (answer.text, answer.thinking, answer.usage.thinking_tokens) == ("a dog", "well", 2)
    assert [ask.thinking for ask in fake.received("ask")] == [True]


async def test_an_answer_that_was_thinking_restarts(fake: FakeServer, example: Path) -> None:
    fake.tokens = [{"text": "well"}, {"text": "a dog", "restart": True}]
    pieces, answer = await asked(fake, example, thinking=True)
    assert pieces == [Piece(text="well"), Piece(text="", restart=True), Piece(text="a dog")]
    assert (answer.text, answer.thinking) == ("a dog", "well")


async def test_an_answer_that_comes_out_differently_after_a_lost_link_restarts(
    fake: FakeServer,
    example: Path,
) -> None:
    fake.lose = [2]
    origin = ModelIdentity.read(MODEL)
    fake.model_id, fake.codec_id = origin.model_id, origin.codec_id
    async with AsyncClient(f"127.0.0.1:{fake.port}") as edge:
        stream = (await edge.picture(example)).ask("what?", stream=True)
        pieces = [await anext(stream)]
        fake.reply_start = "no"
        pieces += [piece async for piece in stream]
    assert pieces[0] == Piece(text="yes")
    assert Piece(text="no", restart=True) in pieces
    assert (await stream.result()).text == "no to what?"


async def test_a_lost_server_ends_it(fake: FakeServer, example: Path) -> None:
    fake.refusal = UnavailableError("stopping", reason="STOPPING")
    with pytest.raises(UnavailableError):
        await asked(fake, example, timeout_s=0.5)
