"""A question that is answered from samples: its rounds one after the other, and what they cost.

    prompt ─ SampleRound ─→ messages ─ synthesis prompt ─ SampleRound ─→ … ─→ messages ─┬─ prompt of the answer
                                                                                        └─ votes

Promises that a round which takes too long, or too many tokens, hands on what has ended; that the sums count every
sample; and that no round waits for the client: Progress is dropped if it reads too slowly, and Rollouts, where it wants
them, are kept for the time when the question needs no place any more. Leaves the answer itself to `edge_server.answer`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from edge_server.assemble import Assembled
from edge_server.engine.base import Finish, Generation
from edge_server.engine.sampling import SamplingParams
from edge_server.outbox import Outbox
from edge_server.pacore.messages import Sample, ordered_messages, read_sample
from edge_server.pacore.prompt import synthesis_turns
from edge_server.pacore.rounds import Rounds
from edge_server.pacore.run import SampleRound
from edge_server.pacore.vote import Vote, count_votes
from edge_server.runtime import Runtime
from tofc.errors import InvalidRequestError
from tofc.model.prompt import Turn
from tofc.v1 import tofc_pb2 as pb

PIECE = 16_384  # characters of a Rollout: a message must stay small, whatever a sample says
FINISH = {Finish.STOP: pb.FINISH_REASON_STOP, Finish.LENGTH: pb.FINISH_REASON_LENGTH}

#: makes the prompt of turns, with the question's pictures
Assemble = Callable[[Sequence[Turn]], Awaitable[Assembled]]


@dataclass(kw_only=True, eq=False)
class Sums:
    """What the samples of a question cost, over all rounds."""

    prompts: int = 0
    prompt_tokens: int = 0
    visual_tokens: int = 0
    new_tokens: int = 0
    thinking_tokens: int = 0
    samples: int = 0
    used: int = 0

    def add_prompt(self, assembled: Assembled) -> None:
        """Count a prompt that the engine reads."""
        self.prompts += 1
        self.prompt_tokens += len(assembled.prompt.embeds)
        self.visual_tokens += assembled.visual_tokens

    def add_samples(self, samples: Sequence[Sample]) -> None:
        """Count the samples of a round."""
        self.samples += len(samples)
        self.used += sum(one.usable for one in samples)
        self.new_tokens += sum(one.tokens for one in samples)
        self.thinking_tokens += sum(one.thinking_tokens for one in samples)


class SampledQuestion:
    """Runs the rounds of one question. `began`: when its deadline began, in the loop's time."""

    def __init__(
        self,
        *,
        number: int,
        turns: Sequence[Turn],
        rounds: Rounds,
        sampling: SamplingParams,
        runtime: Runtime,
        outbox: Outbox,
        client: str,
        assemble: Assemble,
        began: float,
        deadline_s: float,
    ) -> None:
        """Prepare the rounds. `sampling` is that of the samples; `deadline_s` is 0 if there is none."""
        self.sums = Sums()
        self.votes: list[Vote] = []
        self.first: Generation | None = None  # of the first round, for its times
        self._number = number
        self._turns = turns
        self._rounds = rounds
        self._sampling = sampling
        self._runtime = runtime
        self._outbox = outbox
        self._client = client
        self._assemble = assemble
        self._began = began
        self._deadline_s = deadline_s
        self._rollouts: list[tuple[int, Sample]] = []  # with their rounds; those not sent yet

    async def run(self, prompt: Assembled) -> Assembled | None:
        """Run all rounds, the first one with `prompt`; return the prompt of the answer, or None if `votes` decided it.

        The caller holds a place of the engine. A round without a usable sample leaves the prompt as it was: the
        original question, or the references of the round before.
        """
        for index, width in enumerate(self._rounds.widths):
            samples = await self._round(index, width, prompt)
            if self._rounds.vote:
                self.votes = count_votes([one.message for one in samples if one.usable])
                return None if self.votes else prompt
            prompt = await self._synthesis(ordered_messages(samples)) or prompt
        return prompt

    def after(self, sampling: SamplingParams) -> SamplingParams:
        """Return `sampling` with the seed that follows those of all samples so far."""
        return replace(sampling, seed=(sampling.seed + self.sums.samples) % 2**64)

    async def _round(self, index: int, width: int, assembled: Assembled) -> list[Sample]:
        backend = self._runtime.backend
        think_tokens = backend.think_tokens
        inside = think_tokens is not None and think_tokens.left_open(assembled.ids, backend.decode)

        def read(number: int, ids: Sequence[int], finish: Finish | None, failed: bool) -> Sample:
            return read_sample(number, ids, finish, backend.decode, think_tokens, inside=inside, failed=failed)

        self.sums.add_prompt(assembled)
        budget = self._rounds.token_budget
        running = SampleRound(
            backend.engine,
            assembled.prompt,
            self.after(self._sampling),
            width,
            admission=self._runtime.admission,
            client=self._client,
            read=read,
            pool=self._runtime.pool,
            token_budget=max(budget - self.sums.new_tokens, 0) if budget else None,
        )

        self._report(index, 0)
        until = self._began + self._rounds.seconds(index, self._deadline_s) if self._deadline_s else None
        try:
            samples = await running.run(until, partial(self._report, index))
        finally:  # those of a round that is cancelled have cost as much
            self.first = self.first or next(iter(running.generations), None)
            self.sums.add_samples(running.samples)
        if self._rounds.rollouts:
            self._rollouts += [(index, one) for one in samples]
        return samples

    async def _synthesis(self, messages: list[str]) -> Assembled | None:
        """Return the prompt with these references, without the longest ones if it were too long; None without any."""
        while messages:
            try:
                return await self._assemble(synthesis_turns(self._turns, messages))
            except InvalidRequestError as error:
                if error.reason != "PROMPT_TOO_LONG":
                    raise
            kept = sorted(range(len(messages)), key=lambda i: len(messages[i]))[: len(messages) // 2]
            messages = [messages[i] for i in sorted(kept)]
        return None

    def _report(self, index: int, ended: int) -> None:
        widths = self._rounds.widths
        self._outbox.offer(
            pb.Progress(request=self._number, round=index + 1, rounds=len(widths), ended=ended, samples=widths[index])
        )

    async def send_rollouts(self) -> None:
        """Send the samples, if the client wants them. It may take long, so the engine's place is not to be held."""
        while self._rollouts:
            await self._send_rollout(*self._rollouts.pop(0))

    async def _send_rollout(self, index: int, sample: Sample) -> None:
        pieces = [sample.message[at : at + PIECE] for at in range(0, len(sample.message), PIECE)] or [""]
        for number, text in enumerate(pieces, 1):
            rollout = pb.Rollout(request=self._number, round=index + 1, sample=sample.index, text=text)
            if number == len(pieces):
                stopped = pb.FINISH_REASON_UNSPECIFIED if sample.failed else pb.FINISH_REASON_CANCELLED
                rollout.finish_reason = stopped if sample.finish is None else FINISH[sample.finish]
                rollout.new_tokens = sample.tokens
            await self._outbox.send(rollout=rollout)


def loop_time() -> float:
    """Return the time that `began` is in."""
    return asyncio.get_running_loop().time()
