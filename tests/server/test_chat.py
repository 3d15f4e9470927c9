"""A conversation's settings on the wire: thinking apart from the answer, and the checkpoint's ways of drawing."""

from collections.abc import Callable
from typing import Any

import pytest

from edge_server.engine.base import Generation, Prompt, Sampling
from edge_server.engine.fake import FakeEngine
from edge_server.fake import fake_backend, prompt_bytes
from edge_server.settings import SessionLimits
from edge_server.thinking import Marks
from shared.model.generation import Defaults
from shared.rpc.tofc.v1 import tofc_pb2
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import RawClient

MARKS = Marks(begin=ord("<"), end=ord(">"))


def thinker(answer: Callable[[bytes], bytes] = lambda prompt: prompt) -> Any:
    return fake_backend(answer, marks=MARKS)


async def heard(client: RawClient, request: int) -> tuple[list[tuple[str, str]], tofc_pb2.Done]:
    """Tokens as (kind, text), those of one kind joined, and Done."""
    said: list[tuple[str, str]] = []
    while (response := await client.receive()).HasField("token"):
        token = response.token
        assert token.request == request
        if token.anew:
            assert not token.text and not token.thinking
            said.append(("anew", ""))
            continue
        kind = "thinking" if token.thinking else "answer"
        if said and said[-1][0] == kind:
            said[-1] = kind, said[-1][1] + token.text
        else:
            said.append((kind, token.text))
    assert response.done.request == request
    return said, response.done


@pytest.mark.parametrize("wanted", [False, True])
async def test_thinking_is_sent_to_those_who_want_it(serve: Serve, connect: Connect, wanted: bool) -> None:
    client = connect(await serve(thinker()))
    await client.hello()
    await client.ask(1, "<why>42", thinking=wanted)
    said, done = await heard(client, 1)
    assert said == [*([("thinking", "why")] * wanted), ("answer", "42")]
    assert (done.usage.new_tokens, done.usage.thinking_tokens, done.unanswered) == (7, 5, False)


@pytest.mark.parametrize("wanted", [False, True])
async def test_a_late_end_of_thinking_takes_the_answer_back(serve: Serve, connect: Connect, wanted: bool) -> None:
    client = connect(await serve(thinker()))
    await client.hello()
    await client.ask(1, "why>no>42", thinking=wanted)
    said, done = await heard(client, 1)
    assert said == [("answer", "why"), ("anew", ""), ("answer", "no"), ("anew", ""), ("answer", "42")]
    assert (done.usage.new_tokens, done.usage.thinking_tokens) == (9, 7)


async def test_a_prompt_that_ends_within_thinking(serve: Serve, connect: Connect) -> None:
    client = connect(await serve(thinker(lambda prompt: b"why>42" if prompt.endswith(b"<\n") else b"plain")))
    await client.hello()
    for request, text, answer, thought in ((1, "?<\n", "42", 4), (2, "?<\nx", "plain", 0)):
        await client.ask(request, text)
        said, done = await heard(client, request)
        assert said == [("answer", answer)] and done.usage.thinking_tokens == thought


async def test_thinking_that_is_cut_is_no_answer(serve: Serve, connect: Connect) -> None:
    client = connect(await serve(thinker()))
    await client.hello()
    await client.ask(1, "<why>42", sampling=tofc_pb2.Sampling(max_tokens=3))
    said, done = await heard(client, 1)
    assert said == [] and done.unanswered and done.finish_reason == tofc_pb2.FINISH_REASON_LENGTH
    assert (done.usage.new_tokens, done.usage.thinking_tokens) == (3, 3)
    await client.ask(2, "<why>42", sampling=tofc_pb2.Sampling(max_tokens=6))
    said, done = await heard(client, 2)
    assert said == [("answer", "4")] and not done.unanswered


async def test_hidden_thinking_costs_no_message(serve: Serve, connect: Connect) -> None:
    """One Token and one Done, however long the thinking is, and no longer ones than without it."""
    sizes = []
    for marks, answer in ((MARKS, b"<" + b"a" * 500 + b">b"), (None, b"b")):
        client = connect(await serve(fake_backend(lambda _, answer=answer: answer, marks=marks)))
        await client.hello()
        await client.ask(1, "?")
        token, done = await client.receive(), (await client.receive()).done
        assert token.token.text == "b"
        done.ClearField("timing")
        done.ClearField("usage")
        sizes.append((token.ByteSize(), done.ByteSize()))
    assert sizes[0] == sizes[1]


class Noting(FakeEngine):
    """Keeps how answers were to be drawn."""

    def __init__(self) -> None:
        super().__init__(lambda prompt: list(prompt_bytes(prompt)))
        self.drawn: list[Sampling] = []

    def submit(self, prompt: Prompt, sampling: Sampling) -> Generation:
        self.drawn.append(sampling)
        return super().submit(prompt, sampling)


FILE = Defaults(temperature=0.6, top_p=0.95, top_k=20, max_tokens=50)


@pytest.mark.parametrize(
    ("defaults", "asked", "drawn"),
    [
        (Defaults(), {}, Sampling(max_tokens=100)),
        (FILE, {}, Sampling(max_tokens=50, temperature=0.6, top_p=0.95, top_k=20)),
        (Defaults(max_tokens=1000), {}, Sampling(max_tokens=100)),
        (FILE, {"max_tokens": 80, "seed": 7}, Sampling(max_tokens=80, temperature=0.6, top_p=0.95, top_k=20, seed=7)),
        (FILE, {"temperature": 0.0}, Sampling(max_tokens=50, temperature=0.0, top_p=0.95, top_k=20)),
        (FILE, {"top_p": 0.5, "top_k": 0}, Sampling(max_tokens=50, temperature=0.6, top_p=0.5, top_k=0)),
        (Defaults(), {"temperature": 2.0, "top_k": 3}, Sampling(max_tokens=100, temperature=2.0, top_k=3)),
    ],
)
async def test_what_is_unset_is_the_checkpoints(
    serve: Serve, connect: Connect, defaults: Defaults, asked: dict[str, Any], drawn: Sampling
) -> None:
    engine = Noting()
    backend = fake_backend(engine=engine, defaults=defaults)
    client = connect(await serve(backend, limits=SessionLimits(new_tokens=100)))
    await client.hello()
    await client.ask(1, "?", sampling=tofc_pb2.Sampling(**asked))
    await client.answer(1)
    await client.ask(2, "?")  # no Sampling at all
    await client.answer(2)
    assert engine.drawn[0] == drawn
    assert (engine.drawn[1].temperature, engine.drawn[1].top_k) == (defaults.temperature, defaults.top_k)


async def test_a_share_of_nothing_is_refused(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    await client.hello()
    await client.ask(1, "?", sampling=tofc_pb2.Sampling(top_p=0.0))
    assert "top_p is 0.0; allowed is more than 0" in (await client.expect("error")).message
