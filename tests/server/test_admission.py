"""Places of the engine: fair among clients, and freed at once."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest

from edge_server.admission import MAX_RETRY_S, MIN_RETRY_S, UNMEASURED_S, Admission
from edge_server.answer import QuestionJob
from edge_server.engine.base import Generation, Prompt
from edge_server.engine.fake import FakeEngine
from edge_server.engine.sampling import SamplingParams
from edge_server.fake import fake_backend, prompt_bytes
from edge_server.outbox import Outbox
from edge_server.reasoning import Delta
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import ANSWERED, RawClient, until, within
from tofc.errors import CallError, InternalError, LimitError
from tofc.v1 import tofc_pb2 as pb


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Asker:
    """Holds a place until `leave`."""

    def __init__(self, admission: Admission, client: str) -> None:
        self._leaving = asyncio.Event()
        self.inside = False
        self.task = asyncio.create_task(self._run(admission, client))

    async def _run(self, admission: Admission, client: str) -> None:
        async with admission.place(client):
            self.inside = True
            await self._leaving.wait()

    async def leave(self) -> None:
        self._leaving.set()
        await self.task


class Gate(asyncio.Event):
    """Lets every answer make one token for each call of `step`."""

    def __init__(self) -> None:
        super().__init__()
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self) -> bool:
        await asyncio.shield(self._opened)
        return True

    async def step(self) -> None:
        opened, self._opened = self._opened, asyncio.get_running_loop().create_future()
        opened.set_result(None)
        await settled()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_client_holds_at_most_half_of_the_places() -> None:
    admission = Admission(4, queue=8)
    greedy = [Asker(admission, "greedy") for _ in range(5)]
    await settled()
    assert [one.inside for one in greedy] == [True, True, False, False, False]
    modest = Asker(admission, "modest")
    await settled()
    assert modest.inside and (admission.running, admission.waiting, admission.share) == (3, 3, 2)
    await greedy[0].leave()
    await settled()
    assert greedy[2].inside and not greedy[3].inside


async def test_a_free_place_goes_to_the_client_that_holds_fewest() -> None:
    admission = Admission(4, queue=8)
    a = [Asker(admission, "a") for _ in range(3)]
    b = [Asker(admission, "b") for _ in range(3)]
    await settled()
    c, d = Asker(admission, "c"), Asker(admission, "d")
    await settled()
    assert not c.inside
    await b[0].leave()
    await settled()
    assert c.inside and not d.inside, "both hold none, and c asked first"
    await a[0].leave()
    await settled()
    assert d.inside and not a[2].inside
    await c.leave()
    await settled()
    assert a[2].inside and not b[2].inside, "both hold one, and a asked first"


async def test_a_client_without_a_question_is_never_refused_and_others_are_beyond_the_queue() -> None:
    admission = Admission(2, queue=2)
    holders = [Asker(admission, client) for client in "ab"]
    await settled()
    assert all(holder.inside for holder in holders)
    waiting = [Asker(admission, "a") for _ in range(2)]
    await settled()
    with pytest.raises(LimitError, match="2 questions are being answered and 2 wait, which is as many") as refused:
        await Asker(admission, "a").task
    assert (refused.value.reason, refused.value.retry_after_s) == ("ENGINE_BUSY", UNMEASURED_S * 3 / 2)
    other = Asker(admission, "c")
    await settled()
    assert admission.waiting == 3
    with pytest.raises(LimitError):
        await Asker(admission, "c").task
    await holders[1].leave()
    await settled()
    assert other.inside and not any(one.inside for one in waiting)


async def test_the_time_to_come_back_follows_from_the_last_answers() -> None:
    clock = Clock()
    admission = Admission(4, queue=8, clock=clock)
    assert admission.retry_after_s() == UNMEASURED_S / 4
    for seconds in (2.0, 6.0):
        answered = Asker(admission, "a")
        await settled()
        clock.now_s += seconds
        await answered.leave()
    assert admission.retry_after_s() == 1.0
    holders = [Asker(admission, client) for client in "aabbccd"]
    await settled()
    assert admission.waiting == 3 and admission.retry_after_s() == 4.0
    clock.now_s += 5.0
    assert admission.retry_after_s() == 5.0, "those that run take longer than the last ones did"
    clock.now_s += 1e6
    await holders[0].leave()
    assert admission.retry_after_s() == MAX_RETRY_S
    quick = Admission(4, queue=8, clock=clock)
    async with quick.place("a"):
        pass
    assert quick.retry_after_s() == MIN_RETRY_S


async def test_refused_questions_come_back_one_after_another() -> None:
    clock = Clock()
    admission = Admission(2, queue=1, clock=clock)
    kept = [Asker(admission, client) for client in ("a", "b", "c")]
    await settled()
    told = []
    for client in ("a", "b", "a", "c", *("a",) * 20):
        with pytest.raises(LimitError) as refused:
            await Asker(admission, client).task
        told.append(refused.value.retry_after_s)
    assert told[:4] == [1.0, 1.5, 2.0, 2.5], "each after those that were told before"
    assert told[-1] == told[-2] == (1 + 2 + 8 + 1) / 2, "one client does not delay others without end"
    for one in kept:
        one.task.cancel()
    clock.now_s = 100.0
    await settled()
    quiet = Admission(2, queue=1, clock=clock)
    assert admission.running == 0 and quiet.retry_after_s() == 0.5
    assert admission.retry_after_s() == MAX_RETRY_S, "the two that ran were given up after 100 s"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (LimitError(reason="CACHE_FULL"), UNMEASURED_S),
        (LimitError(reason="NO_MEMORY", retry_after_s=7.0), 7.0),
        (LimitError(reason="LIMIT_EXCEEDED"), None),
        (InternalError(), None),
    ],
)
def test_only_what_passes_is_worth_asking_again(error: CallError, told: float | None) -> None:
    assert Admission(1, queue=1).advise(error).retry_after_s == told


async def test_a_place_is_not_lost_with_a_question_that_is_cancelled() -> None:
    admission = Admission(1, queue=8)
    holder = Asker(admission, "holder")
    await settled()
    waiting, granted, last = (Asker(admission, name) for name in "abc")
    await settled()
    waiting.task.cancel()
    await holder.leave()
    granted.task.cancel()
    await settled()
    assert last.inside and admission.waiting == 0
    await last.leave()
    again = Asker(admission, "a")
    await settled()
    assert again.inside


async def ask_all(client: RawClient, count: int) -> None:
    await client.hello()
    for number in range(1, count + 1):
        await client.ask(number, "more, please")


async def test_eight_questions_of_one_client_delay_the_first_token_of_another_by_two_steps_at_most(
    serve: Serve, connect: Connect
) -> None:
    gate = Gate()
    engine = FakeEngine(lambda prompt: list(prompt_bytes(prompt)), gate=gate)
    server = await serve(fake_backend(engine=engine), engine_parallel=8)
    greedy, modest = connect(server), connect(server)
    await ask_all(greedy, 8)
    await until(lambda: len(engine.prompts) == 4)
    await gate.step()
    await modest.hello()
    await modest.ask(1, "?")
    await until(lambda: len(engine.prompts) == 5)
    first = asyncio.create_task(modest.expect("token"))
    for _ in range(2):
        assert engine.steps < 4 * 3, "the greedy client's answers are far from their end"
        await gate.step()
    assert (await within(first)).text == "?"
    for number in range(1, 9):
        await greedy.send(cancels=[pb.Cancel(request=number)])


async def test_a_refused_question_says_when_to_come_back(serve: Serve, connect: Connect) -> None:
    engine = FakeEngine(lambda prompt: list(prompt_bytes(prompt)), gate=asyncio.Event())
    server = await serve(fake_backend(engine=engine), engine_parallel=2, engine_queue=1)
    client = connect(server)
    await ask_all(client, 3)
    error = await client.expect("error")
    assert (error.request, error.reason, error.retry_after_ms) == (3, "ENGINE_BUSY", 1000)
    assert error.message.endswith("ask again when one is answered")


async def test_a_waiting_question_that_is_cancelled_frees_its_place_and_its_picture(
    serve: Serve, connect: Connect
) -> None:
    engine = FakeEngine(lambda prompt: list(prompt_bytes(prompt)), gate=asyncio.Event())
    server = await serve(fake_backend(engine=engine), engine_parallel=1, engine_queue=1)
    first, second = connect(server), connect(server)
    await ask_all(first, 1)
    await until(lambda: engine.prompts)
    await second.hello()
    assert not await second.picture(1, "cat")
    await second.view(1, 0, b"cat")
    await second.ask(1, "?", (1,))
    runtime = server.service._runtime
    assert runtime is not None
    await until(lambda: runtime.admission.waiting)
    (held,) = server.service.pictures._pictures.values()
    assert held.questions == 1
    await second.send(cancels=[pb.Cancel(request=1)])
    assert (await second.answer(1))[1].finish_reason == pb.FINISH_REASON_CANCELLED
    await until(lambda: not held.questions)
    assert held.evictable and not runtime.admission.waiting and len(engine.prompts) == 1


class ForgetfulEngine(FakeEngine):
    """Keeps none of the prompts that it is given; `alive` are those that somebody else keeps."""

    def __init__(self) -> None:
        super().__init__(lambda prompt: list(prompt_bytes(prompt)), gate=asyncio.Event())
        self.alive: weakref.WeakSet[Prompt] = weakref.WeakSet()
        self.submitted = 0

    def submit_samples(self, prompt: Prompt, sampling: SamplingParams, samples: int) -> Sequence[Generation]:
        self.alive.add(prompt)
        self.submitted += 1
        return super().submit_samples(Prompt(embeds=prompt.embeds.copy()), sampling, samples)


@pytest.mark.parametrize("how", ["deadline", "cancel", "client gone"])
async def test_an_answer_that_is_given_up_frees_its_prompt_at_once(serve: Serve, connect: Connect, how: str) -> None:
    engine = ForgetfulEngine()
    server = await serve(fake_backend(engine=engine))
    client = connect(server)
    await client.hello()
    gc.disable()  # at once, not when cycles are collected
    try:
        await client.ask(1, "?", deadline_ms=50 if how == "deadline" else 0)
        await until(lambda: engine.submitted)
        if how == "deadline":
            assert (await client.expect("error")).reason == "DEADLINE_EXCEEDED"
        elif how == "cancel":
            await client.send(cancels=[pb.Cancel(request=1)])
            await client.answer(1)
        else:
            client.call.cancel()
        await until(lambda: not engine.alive)
    finally:
        gc.enable()


async def test_a_place_is_free_when_the_engine_is_done_even_if_nobody_reads(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = asyncio.Event()
    server = await serve(engine_parallel=1, engine_queue=1)
    clients = [connect(server) for _ in range(3)]
    for client in clients:
        await client.hello()
    say = QuestionJob._send

    async def stuck(self: QuestionJob, deltas: list[Delta], outbox: Outbox) -> None:
        if self.turns[0].text == "unread":
            await held.wait()
        await say(self, deltas, outbox)

    monkeypatch.setattr(QuestionJob, "_send", stuck)
    *unread, other = clients
    for client in unread:
        await client.ask(1, "unread")
    await other.ask(1, "read")
    assert (await other.answer(1))[0] == "read"
    held.set()
    for client in unread:
        assert (await client.answer(1))[0] == "unread"


async def test_a_modest_session_is_answered_beside_greedy_ones(serve: Serve, connect: Connect) -> None:
    gate = asyncio.Event()
    engine = FakeEngine(lambda prompt: list(prompt_bytes(prompt)), gate=gate, queue=4)
    server = await serve(fake_backend(engine=engine), engine_parallel=2, engine_queue=2)
    async with AsyncExitStack() as stack:
        for _ in range(6):
            greedy = connect(server)
            stack.push_async_callback(greedy.channel.close)
            await ask_all(greedy, 8)
        modest = connect(server)
        await modest.hello()
        for number in range(1, 4):
            await modest.ask(number, "please")
            gate.set()
            async with asyncio.timeout(ANSWERED):
                assert (await modest.answer(number))[0] == "please"
