"""Questions that are answered from samples: a raw client against a server whose engine's samples are prescribed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from edge_server.engine.base import Finish, Prompt
from edge_server.engine.fake import FakeEngine
from edge_server.engine.sampling import SamplingParams
from edge_server.fake import fake_backend, prompt_bytes
from edge_server.pacore.messages import Sample, ordered_messages
from edge_server.pacore.prompt import synthesis_text, synthesis_turns
from edge_server.pacore.vote import count_votes
from edge_server.reasoning import ThinkTokens
from edge_server.settings import SessionLimits
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import RawClient, until
from tofc.errors import LimitError, UnavailableError
from tofc.model.generation import GenerationConfig
from tofc.model.prompt import Turn
from tofc.v1 import tofc_pb2 as pb

REFERENCES = b"Reference Responses:"  # what makes a prompt a synthesis
SEED = 100
SAMPLING = pb.Sampling(seed=SEED)
QUESTION = "how many?"
STOP, LENGTH, CANCELLED = pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_CANCELLED
THINK = ThinkTokens(begin=1, end=2)  # of the fake tokenizer, whose ids are bytes
INVALID = grpc.StatusCode.INVALID_ARGUMENT.value[0]

GOLDEN = """\
You are given a problem and a list of reference responses. Your job is to analyze these references and provide your \
own response.

Original Problem:
how many?

Reference Responses:

Reference 1:
3

Reference 2:
{{ four }}


Now, based on the original problem and reference responses above, please provide your own comprehensive solution."""


def engine_of(samples: Sequence[bytes | Exception], answer: bytes = b"final", **more: Any) -> FakeEngine:
    """Answer a question with these samples by their seeds, and a synthesis with `answer`."""

    def sample(prompt: Prompt, params: SamplingParams) -> Sequence[int | Exception]:
        one = answer
        if REFERENCES not in prompt_bytes(prompt) or params.seed - SEED < len(samples):
            found = samples[(params.seed - SEED) % len(samples)]
            if isinstance(found, Exception):
                return [found]
            one = found
        return list(one)

    return FakeEngine(lambda _: (), sample=sample, **more)


async def ask(client: RawClient, reasoning: pb.Reasoning, question: str = QUESTION, **more: Any) -> None:
    await client.hello()
    sampling = more.pop("sampling", SAMPLING)
    await client.ask(1, question, reasoning=reasoning, sampling=sampling, **more)


async def replies(client: RawClient) -> tuple[list[pb.Progress], list[pb.Rollout], str, pb.Done]:
    """Return all that arrives for the only question in flight."""
    progress, rollouts, text = [], [], ""
    while True:
        response = await client.receive()
        kind = response.WhichOneof("response")
        if kind == "progress":
            progress.append(response.progress)
        elif kind == "rollout":
            rollouts.append(response.rollout)
        elif kind == "token":
            text += response.token.text
        else:
            assert kind == "done", response
            return progress, rollouts, text, response.done


def prompts(engine: FakeEngine) -> list[str]:
    return [prompt_bytes(prompt).decode() for prompt in engine.prompts]


# prompts and messages


def test_the_prompt_is_the_published_one_to_the_letter() -> None:
    assert synthesis_text("how many?", ["3", "{{ four }}"]) == GOLDEN


def stopped(index: int, message: str, text: str | None = None) -> Sample:
    return Sample(index=index, text=message if text is None else text, message=message, finish=Finish.STOP)


def test_messages_are_sorted_by_their_whole_length_then_shuffled_as_published() -> None:
    texts = ["ccc", "a", "bb", "dddd"]
    assert ordered_messages([stopped(i, text) for i, text in enumerate(texts)]) == ["ccc", "bb", "dddd", "a"]
    # [a, bb, ccc, dddd] by length becomes [2, 1, 3, 0] by random.Random(42); thinking counts for the length
    thought = [stopped(0, "ccc", "?" * 9), stopped(1, "a"), stopped(2, "bb"), stopped(3, "dddd", "?" * 8 + "dddd")]
    assert ordered_messages(thought) == ["ccc", "bb", "dddd", "a"]
    thought[0] = stopped(0, "ccc", "?" * 30)
    assert ordered_messages(thought) == ["dddd", "bb", "ccc", "a"]


def test_samples_without_an_answer_take_a_place_in_the_shuffle_but_are_no_messages() -> None:
    cut = Sample(index=1, text="zzzzz", message="zzzzz", finish=Finish.LENGTH)
    samples = [stopped(0, "ccc"), cut, stopped(2, "bb"), stopped(3, "dddd"), stopped(4, " \n")]
    # by length: cut and the blank one as empty, bb, ccc, dddd; Random(42) makes [3, 1, 2, 4, 0] of five
    assert ordered_messages(samples) == ["ccc", "bb", "dddd"]


async def test_samples_are_one_request_and_the_answer_reads_them(serve: Serve, connect: Connect) -> None:
    engine = engine_of([b"3", b"44", b"3", b"555"])
    client = connect(await serve(fake_backend(engine=engine)))
    await ask(client, pb.Reasoning(rounds=[4]))
    progress, rollouts, text, done = await replies(client)
    assert text == "final" and not rollouts and not done.votes
    assert [(one.round, one.rounds, one.samples) for one in progress] == [(1, 1, 4)] * 5
    assert [one.ended for one in progress] == [0, 1, 2, 3, 4]
    messages = ["44", "3", "555", "3"]  # by length 3, 3, 44, 555
    assert prompts(engine) == [QUESTION, synthesis_text(QUESTION, messages)]
    sizes = [len(prompt) for prompt in prompts(engine)]
    usage = done.usage
    assert (usage.prompts, usage.samples, usage.samples_used) == (2, 4, 4)
    assert usage.prompt_tokens == sum(sizes) and usage.new_tokens == 1 + 2 + 1 + 3 + len("final")
    assert done.finish_reason == STOP and done.timing.first_token_us > 0


async def test_samples_are_drawn_at_temperature_1_even_if_the_model_answers_greedily(
    serve: Serve, connect: Connect
) -> None:
    engine = engine_of([b"3"])
    client = connect(await serve(fake_backend(engine=engine)))
    await ask(client, pb.Reasoning(rounds=[3]))
    await replies(client)
    samples, (answer,) = engine.params
    assert [(one.temperature, one.top_p, one.top_k, one.seed) for one in samples] == [
        (1.0, 1.0, 0, SEED + i) for i in range(3)
    ]
    assert answer.temperature == 0.0
    config = GenerationConfig(temperature=0.6, top_p=0.9, top_k=5)
    engine = engine_of([b"3"])
    client = connect(await serve(fake_backend(engine=engine, generation_config=config)))
    await ask(client, pb.Reasoning(rounds=[2]), sampling=pb.Sampling(seed=SEED, temperature=0.5, top_k=7))
    await replies(client)
    samples, (answer,) = engine.params
    assert [(one.temperature, one.top_p, one.top_k) for one in samples] == [(0.5, 1.0, 7)] * 2
    assert (answer.temperature, answer.top_p, answer.top_k) == (0.5, pytest.approx(0.9), 7)


async def test_further_rounds_read_the_round_before(serve: Serve, connect: Connect) -> None:
    engine = engine_of([b"3", b"44", b"555", b"x", b"yy"])
    client = connect(await serve(fake_backend(engine=engine)))
    await ask(client, pb.Reasoning(rounds=[3, 2], rollouts=True))
    progress, rollouts, text, done = await replies(client)
    assert text == "final"
    first = synthesis_text(QUESTION, ["44", "3", "555"])
    assert prompts(engine) == [QUESTION, first, synthesis_text(QUESTION, ["yy", "x"])]
    assert [one.seed for one in engine.params[1]] == [SEED + 3, SEED + 4]
    assert [(one.round, one.ended) for one in progress] == [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2)]
    assert sorted((one.round, one.sample, one.text, one.new_tokens) for one in rollouts) == [
        *[(1, 0, "3", 1), (1, 1, "44", 2), (1, 2, "555", 3)],
        *[(2, 0, "x", 1), (2, 1, "yy", 2)],
    ]
    assert {one.finish_reason for one in rollouts} == {STOP}
    assert (done.usage.prompts, done.usage.samples, done.usage.samples_used) == (3, 5, 5)


async def test_pictures_and_earlier_turns_stay_and_pictures_are_decoded_once(serve: Serve, connect: Connect) -> None:
    engine = engine_of([b"3"])
    client = connect(await serve(fake_backend(engine=engine)))
    await client.hello()
    await client.picture(1, "p")
    await client.view(1, 0, b"PICTURE ")
    history = [pb.Turn(role=pb.ROLE_USER, text="before?"), pb.Turn(role=pb.ROLE_ASSISTANT, text="yes")]
    await client.ask(1, QUESTION, refs=(1,), history=history, sampling=SAMPLING, reasoning=pb.Reasoning(rounds=[2]))
    *_, done = await replies(client)
    start = "PICTURE before?yes"
    assert prompts(engine) == [start + QUESTION, start + synthesis_text(QUESTION, ["3", "3"])]
    assert done.usage.visual_tokens == 2 * len("PICTURE ")
    await client.ask(2, "and then?", refs=(1,), previous_request=1)
    assert (await client.answer(2))[0] == "3"
    assert prompts(engine)[-1] == start + QUESTION + "final" + "and then?", "a turn is the question, not the prompt"


async def test_thinking_is_cut_and_never_sent(serve: Serve, connect: Connect) -> None:
    engine = engine_of([b"\x01hm\x02no\x01again\x02\n7", b"88", b"\x01endless"], b"\x01well\x02final")
    client = connect(await serve(fake_backend(engine=engine, think_tokens=THINK)))
    await ask(client, pb.Reasoning(rounds=[3], rollouts=True))
    _, rollouts, text, done = await replies(client)
    assert text == "final"
    texts = {one.sample: one.text for one in rollouts}
    assert texts[0] == "7" and texts[1] == "88"
    assert texts[2] == "\x01endless", "without an end of thinking the whole text is the message, as published"
    assert done.usage.thinking_tokens == 13 + 8 + 6
    assert synthesis_text(QUESTION, ["\x01endless", "88", "7"]) == prompts(engine)[1]


async def test_samples_that_were_cut_say_nothing_or_fail_are_dropped(serve: Serve, connect: Connect) -> None:
    memory = LimitError("out of memory; ask again", reason="ENGINE_MEMORY")
    engine = engine_of([b"much too long", b"", b"5", memory])
    client = connect(await serve(fake_backend(engine=engine)))
    await ask(client, pb.Reasoning(rounds=[4], rollouts=True), sampling=pb.Sampling(seed=SEED, max_tokens=8))
    _, rollouts, text, done = await replies(client)
    assert prompts(engine)[1] == synthesis_text(QUESTION, ["5"])
    assert text == "final" and (done.usage.samples, done.usage.samples_used) == (4, 1)
    assert [one.finish_reason for one in sorted(rollouts, key=lambda one: one.sample)] == [
        *(LENGTH, STOP, STOP, pb.FINISH_REASON_UNSPECIFIED)
    ]


async def test_without_a_message_the_question_is_asked_as_it_was(serve: Serve, connect: Connect) -> None:
    engine = engine_of([b"much too long", b""])
    client = connect(await serve(fake_backend(engine=engine)))
    for reasoning in (pb.Reasoning(rounds=[2]), pb.Reasoning(vote=2)):
        if not engine.prompts:
            await client.hello()
        number = len(engine.prompts) + 1
        sampling = pb.Sampling(seed=SEED, max_tokens=8)
        await client.ask(number, QUESTION, reasoning=reasoning, sampling=sampling)
        *_, text, done = await replies(client)
        assert prompts(engine)[-2:] == [QUESTION, QUESTION]
        assert text == "much too" and done.finish_reason == LENGTH and not done.votes
        assert done.usage.samples_used == 0


async def test_a_sample_longer_than_a_message_arrives_in_pieces(serve: Serve, connect: Connect) -> None:
    long = b"x" * 40_000
    client = connect(await serve(fake_backend(engine=engine_of([long])), limits=SessionLimits(new_tokens=50_000)))
    await ask(client, pb.Reasoning(rounds=[1], rollouts=True))
    _, rollouts, *_ = await replies(client)
    assert "".join(one.text for one in rollouts) == long.decode()
    assert [one.finish_reason for one in rollouts] == [0, 0, STOP] and rollouts[-1].new_tokens == len(long)


async def test_a_synthesis_that_is_too_long_goes_without_its_longest_messages(serve: Serve, connect: Connect) -> None:
    engine = engine_of([b"y" * 300, b"1", b"2", b"x" * 300], max_positions=800)
    client = connect(await serve(fake_backend(engine=engine)))
    await ask(client, pb.Reasoning(rounds=[4]))
    *_, done = await replies(client)
    assert prompts(engine)[1] == synthesis_text(QUESTION, ["2", "1"]) and done.usage.samples_used == 4


# votes


def test_votes_differ_in_more_than_case_space_and_a_full_stop() -> None:
    found = count_votes(["Top  left.", "top left", "left", " TOP LEFT ", "left, top"])
    assert [(one.text, one.count) for one in found] == [("Top  left.", 3), ("left", 1), ("left, top", 1)]


@pytest.mark.parametrize(
    ("samples", "answer", "votes"),
    [
        ([b"4", b"3", b"3"], "3", [("3", 2), ("4", 1)]),
        ([b"Yes.", b"no", b"No", b"yes"], "Yes.", [("Yes.", 2), ("no", 2)]),
        ([b"no", b"yes", b"yes", b"no"], "no", [("no", 2), ("yes", 2)]),
    ],
)
async def test_the_majority_is_the_answer_and_a_tie_goes_to_the_first(
    samples: list[bytes], answer: str, votes: list[tuple[str, int]], serve: Serve, connect: Connect
) -> None:
    engine = engine_of(samples)
    client = connect(await serve(fake_backend(engine=engine)))
    await ask(client, pb.Reasoning(vote=len(samples)))
    progress, _, text, done = await replies(client)
    assert text == answer and [(one.text, one.count) for one in done.votes] == votes
    assert prompts(engine) == [QUESTION] and progress[-1].ended == len(samples)
    assert (done.usage.prompts, done.usage.samples, done.finish_reason) == (1, len(samples), STOP)
    assert done.usage.new_tokens == sum(map(len, samples)) and done.timing.first_token_us > 0
    assert done.timing.total_us >= done.timing.prefill_us


# what ends a round


async def test_a_token_budget_counts_all_samples_and_stops_the_others(serve: Serve, connect: Connect) -> None:
    engine = engine_of([b"3", b"44", b"endless " * 50, b"endless " * 50])
    client = connect(await serve(fake_backend(engine=engine)))
    await ask(client, pb.Reasoning(rounds=[4, 2], rollouts=True, token_budget=40))
    progress, rollouts, text, done = await replies(client)
    assert text == "final"
    assert done.usage.new_tokens - len("final") in range(40, 44), "a step is at most one token of each sample"
    assert prompts(engine) == [QUESTION, synthesis_text(QUESTION, ["3", "44"])], "nothing is left for another round"
    assert {one.sample: one.finish_reason for one in rollouts} == {0: STOP, 1: STOP, 2: CANCELLED, 3: CANCELLED}
    assert [(one.round, one.ended) for one in progress] == [(1, 0), (1, 1), (1, 2), (2, 0)]
    await until(lambda: engine.cancelled == 2)


async def test_the_deadline_leaves_time_to_read_what_has_ended(serve: Serve, connect: Connect) -> None:
    engine = engine_of([b"3", b"endless" * 10_000], step_s=0.001)
    client = connect(await serve(fake_backend(engine=engine), limits=SessionLimits(new_tokens=100_000)))
    await ask(client, pb.Reasoning(rounds=[2]), deadline_ms=4000)
    *_, text, done = await replies(client)
    assert text == "final" and prompts(engine)[1] == synthesis_text(QUESTION, ["3"])
    assert 3e6 <= done.timing.first_token_us < 4e6 and engine.cancelled == 1
    assert (done.usage.samples, done.usage.samples_used) == (2, 1)


async def test_a_vote_at_the_deadline_counts_what_has_ended(serve: Serve, connect: Connect) -> None:
    engine = engine_of([b"3", b"endless" * 10_000], step_s=0.001)
    client = connect(await serve(fake_backend(engine=engine), limits=SessionLimits(new_tokens=100_000)))
    await ask(client, pb.Reasoning(vote=2), deadline_ms=1000)
    *_, text, done = await replies(client)
    assert text == "3" and [(one.text, one.count) for one in done.votes] == [("3", 1)]


async def test_a_cancel_stops_all_samples(serve: Serve, connect: Connect) -> None:
    gate = asyncio.Event()
    engine = engine_of([b"3"], gate=gate)
    client = connect(await serve(fake_backend(engine=engine)))
    await ask(client, pb.Reasoning(rounds=[16]))
    assert (await client.expect("progress")).samples == 16
    await until(lambda: engine.load().running == 16)
    await client.send(cancels=[pb.Cancel(request=1)])
    assert (await client.expect("done")).finish_reason == CANCELLED
    await until(engine.idle.is_set)
    assert engine.cancelled == 16 and engine.steps == 0


async def test_samples_of_a_round_that_is_cancelled_are_counted(serve: Serve, connect: Connect) -> None:
    engine = engine_of([b"3", b"endless" * 10_000], step_s=0.001)
    client = connect(await serve(fake_backend(engine=engine), limits=SessionLimits(new_tokens=100_000)))
    await ask(client, pb.Reasoning(rounds=[2]))
    await until(lambda: engine.steps >= 20)
    await client.send(cancels=[pb.Cancel(request=1)])
    *_, done = await replies(client)
    assert done.finish_reason == CANCELLED
    assert done.usage.new_tokens >= 10 and (done.usage.samples, done.usage.samples_used) == (2, 1)


async def test_a_lost_engine_ends_the_question(serve: Serve, connect: Connect) -> None:
    lost = UnavailableError("the engine was lost; ask again", reason="ENGINE_LOST")
    engine = engine_of([b"3" * 500, lost])
    client = connect(await serve(fake_backend(engine=engine)))
    await ask(client, pb.Reasoning(rounds=[2]))
    await client.expect("progress")
    error = await client.expect("error")
    assert (error.request, error.reason) == (1, "ENGINE_LOST")
    await until(engine.idle.is_set)


async def test_more_samples_than_places_run_one_after_the_other(serve: Serve, connect: Connect) -> None:
    most = 0

    def busiest(prompt: Prompt, params: SamplingParams) -> list[int]:
        nonlocal most
        most = max(most, engine.load().running)
        return list(b"final" if REFERENCES in prompt_bytes(prompt) else b"%d" % (params.seed - SEED))

    engine = FakeEngine(lambda _: (), sample=busiest)
    client = connect(await serve(fake_backend(engine=engine), engine_parallel=6))  # of which one client has half
    await ask(client, pb.Reasoning(rounds=[7], rollouts=True))
    progress, rollouts, text, _ = await replies(client)
    assert text == "final" and progress[-1].ended == 7
    assert sorted(int(one.text) for one in rollouts) == list(range(7)), "every sample has its own seed"
    assert most == 3


async def test_samples_leave_places_for_others(serve: Serve, connect: Connect) -> None:
    gate = asyncio.Event()
    engine = engine_of([b"3"], gate=gate)
    server = await serve(fake_backend(engine=engine), engine_parallel=6)
    first, other = connect(server), connect(server)
    await ask(first, pb.Reasoning(rounds=[8]))
    await until(lambda: engine.load().running == 3)
    await other.hello()
    await other.ask(1, "short?")
    await until(lambda: engine.load().running == 4)
    gate.set()
    assert (await other.answer(1))[0] == "3"
    assert (await replies(first))[2] == "final"


# what is refused


@pytest.mark.parametrize(
    ("reasoning", "sampling", "reason", "said"),
    [
        (pb.Reasoning(), pb.Sampling(), "REASONING_INVALID", "either rounds or vote, got neither"),
        (pb.Reasoning(rounds=[4], vote=2), pb.Sampling(), "REASONING_INVALID", r"got rounds \[4\] and vote 2"),
        (pb.Reasoning(rounds=[4, 0]), pb.Sampling(), "REASONING_INVALID", r"at least 1 sample each, got \[4, 0\]"),
        (pb.Reasoning(rounds=[1] * 9), pb.Sampling(), "REASONING_INVALID", "1 to 8 rounds"),
        (pb.Reasoning(rounds=[9, 8]), pb.Sampling(), "TOO_MANY_SAMPLES", "16 samples in all, got 17; .*--samples"),
        (pb.Reasoning(vote=17), pb.Sampling(), "TOO_MANY_SAMPLES", "16 samples in all, got 17"),
        (pb.Reasoning(vote=2**32 - 1), pb.Sampling(), "TOO_MANY_SAMPLES", "got 4294967295"),
        (pb.Reasoning(vote=2), pb.Sampling(temperature=0.0), "REASONING_INVALID", "temperature 0 are all equal"),
    ],
)
async def test_what_cannot_be_sampled_is_refused(
    reasoning: pb.Reasoning, sampling: pb.Sampling, reason: str, said: str, serve: Serve, connect: Connect
) -> None:
    engine = engine_of([b"3"])
    client = connect(await serve(fake_backend(engine=engine), limits=SessionLimits(samples=16)))
    assert (await client.hello()).limits.samples == 16
    await client.ask(1, QUESTION, reasoning=reasoning, sampling=sampling)
    error = await client.expect("error")
    assert (error.request, error.status, error.reason) == (1, INVALID, reason)
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(error.message)
    assert not engine.prompts
    await client.ask(2, QUESTION)
    assert (await client.answer(2))[0] == "3", "the session goes on"


async def test_a_server_may_take_no_samples(serve: Serve, connect: Connect) -> None:
    client = connect(await serve(limits=SessionLimits(samples=0)))
    await ask(client, pb.Reasoning(vote=2))
    error = await client.expect("error")
    assert error.reason == "SAMPLES_NOT_TAKEN" and "--samples" in error.message


def test_a_turn_is_replaced_by_the_prompt_and_nothing_else() -> None:
    turns = [Turn(role="user", text="a"), Turn(role="assistant", text="b"), Turn(role="user", text="c")]
    assert synthesis_turns(turns, []) == turns
    assert synthesis_turns(turns, ["d"]) == [*turns[:2], Turn(role="user", text=synthesis_text("c", ["d"]))]
