"""Options of a question on the wire: thinking apart from the answer, and the checkpoint's defaults of sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edge_server.engine.fake import FakeEngine
from edge_server.engine.sampling import SamplingParams
from edge_server.fake import fake_backend, prompt_bytes
from edge_server.reasoning import ThinkTokens
from edge_server.settings import SessionLimits
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import RawClient
from tofc.model.generation import GenerationConfig
from tofc.v1 import tofc_pb2 as pb

THINK_TOKENS = ThinkTokens(begin=ord("<"), end=ord(">"))


def thinker(answer: Callable[[bytes], bytes] = lambda prompt: prompt) -> Any:
    return fake_backend(answer, think_tokens=THINK_TOKENS)


async def received(client: RawClient, request: int) -> tuple[list[tuple[str, str]], pb.Done]:
    """Return the tokens as (kind, text), successive ones of one kind joined, and Done."""
    pieces: list[tuple[str, str]] = []
    while (response := await client.receive()).HasField("token"):
        token = response.token
        assert token.request == request
        if token.restart:
            assert not token.text and not token.thinking
            pieces.append(("restart", ""))
            continue
        kind = "thinking" if token.thinking else "answer"
        if pieces and pieces[-1][0] == kind:
            pieces[-1] = kind, pieces[-1][1] + token.text
        else:
            pieces.append((kind, token.text))
    assert response.done.request == request
    return pieces, response.done


@pytest.mark.parametrize("wanted", [False, True])
async def test_thinking_is_sent_to_those_who_want_it(serve: Serve, connect: Connect, wanted: bool) -> None:
    client = connect(await serve(thinker()))
    await client.hello()
    await client.ask(1, "<why>42", thinking=wanted)
    pieces, done = await received(client, 1)
    assert pieces == [*([("thinking", "why")] * wanted), ("answer", "42")]
    assert (done.usage.new_tokens, done.usage.thinking_tokens, done.unanswered) == (7, 5, False)


@pytest.mark.parametrize("wanted", [False, True])
async def test_a_late_end_of_thinking_takes_the_answer_back(serve: Serve, connect: Connect, wanted: bool) -> None:
    client = connect(await serve(thinker()))
    await client.hello()
    await client.ask(1, "why>no>42", thinking=wanted)
    pieces, done = await received(client, 1)
    assert pieces == [("answer", "why"), ("restart", ""), ("answer", "no"), ("restart", ""), ("answer", "42")]
    assert (done.usage.new_tokens, done.usage.thinking_tokens) == (9, 7)


async def test_a_prompt_that_ends_within_thinking(serve: Serve, connect: Connect) -> None:
    client = connect(await serve(thinker(lambda prompt: b"why>42" if prompt.endswith(b"<\n") else b"plain")))
    await client.hello()
    for request, text, answer, thought in ((1, "?<\n", "42", 4), (2, "?<\nx", "plain", 0)):
        await client.ask(request, text)
        pieces, done = await received(client, request)
        assert pieces == [("answer", answer)] and done.usage.thinking_tokens == thought


async def test_thinking_that_is_cut_off_is_not_an_answer(serve: Serve, connect: Connect) -> None:
    client = connect(await serve(thinker()))
    await client.hello()
    await client.ask(1, "<why>42", sampling=pb.Sampling(max_tokens=3))
    pieces, done = await received(client, 1)
    assert pieces == [] and done.unanswered and done.finish_reason == pb.FINISH_REASON_LENGTH
    assert (done.usage.new_tokens, done.usage.thinking_tokens) == (3, 3)
    await client.ask(2, "<why>42", sampling=pb.Sampling(max_tokens=6))
    pieces, done = await received(client, 2)
    assert pieces == [("answer", "4")] and not done.unanswered


async def test_hidden_thinking_costs_no_message(serve: Serve, connect: Connect) -> None:
    """One Token and one Done, however long the thinking is, and no longer ones than without it."""
    sizes = []
    for think_tokens, answer in ((THINK_TOKENS, b"<" + b"a" * 500 + b">b"), (None, b"b")):
        client = connect(await serve(fake_backend(lambda _, answer=answer: answer, think_tokens=think_tokens)))
        await client.hello()
        await client.ask(1, "?")
        token, done = await client.receive(), (await client.receive()).done
        assert token.token.text == "b"
        done.ClearField("timing")
        done.ClearField("usage")
        sizes.append((token.ByteSize(), done.ByteSize()))
    assert sizes[0] == sizes[1]


FILE = GenerationConfig(temperature=0.6, top_p=0.95, top_k=20, max_tokens=50)


@pytest.mark.parametrize(
    ("defaults", "asked", "params"),
    [
        (GenerationConfig(), {}, SamplingParams(max_tokens=100)),
        (FILE, {}, SamplingParams(max_tokens=50, temperature=0.6, top_p=0.95, top_k=20)),
        (GenerationConfig(max_tokens=1000), {}, SamplingParams(max_tokens=100)),
        (
            FILE,
            {"max_tokens": 80, "seed": 7},
            SamplingParams(max_tokens=80, temperature=0.6, top_p=0.95, top_k=20, seed=7),
        ),
        (FILE, {"temperature": 0.0}, SamplingParams(max_tokens=50, temperature=0.0, top_p=0.95, top_k=20)),
        (FILE, {"top_p": 0.5, "top_k": 0}, SamplingParams(max_tokens=50, temperature=0.6, top_p=0.5, top_k=0)),
        (
            GenerationConfig(),
            {"temperature": 2.0, "top_k": 3},
            SamplingParams(max_tokens=100, temperature=2.0, top_k=3),
        ),
    ],
)
async def test_unset_options_are_the_checkpoints(
    serve: Serve, connect: Connect, defaults: GenerationConfig, asked: dict[str, Any], params: SamplingParams
) -> None:
    engine = FakeEngine(lambda prompt: list(prompt_bytes(prompt)))
    backend = fake_backend(engine=engine, generation_config=defaults)
    client = connect(await serve(backend, limits=SessionLimits(new_tokens=100)))
    await client.hello()
    await client.ask(1, "?", sampling=pb.Sampling(**asked))
    await client.answer(1)
    await client.ask(2, "?")  # no Sampling at all
    await client.answer(2)
    assert engine.params[0] == [params]
    (second,) = engine.params[1]
    assert (second.temperature, second.top_k) == (defaults.temperature, defaults.top_k)


async def test_a_top_p_of_zero_is_refused(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    await client.hello()
    await client.ask(1, "?", sampling=pb.Sampling(top_p=0.0))
    assert "top_p must be more than 0 and at most 1, got 0.0" in (await client.expect("error")).message
