"""The samples of one prompt as vLLM gives them: token ids in pieces, until a finish reason.

    submit_samples ─→ Sample 0 … n − 1, each with its Generation; greedy ones are equal, so one Sample feeds them all
    tokens, finish reason ─ take ─→ Generation: ids without the stop token, then why it ended

Promises that a stop token is not said, and that more tokens than were asked for are an error. Leaves asking to the
engines.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from edge_server.engine.base import Finish, Generation, Prompt, answer_limit, sample_params
from edge_server.engine.faults import BrokenOffError, NonsenseError
from edge_server.engine.sampling import SamplingParams
from tofc.errors import InvalidRequestError

MAX_TEMPERATURE = 2.0  # vLLM's
GREEDY = 1e-5  # a temperature below it is 0 for vLLM
SEEDS = 2**63  # vLLM takes signed numbers as seeds, of which -1 means none


@dataclass(eq=False, kw_only=True)
class Sample:
    """One answer as an engine gives it, for one generation or several."""

    generations: list[Generation]
    sampling: SamplingParams
    said: list[int] = field(default_factory=list)
    began: bool = False
    ended: bool = False

    @property
    def open(self) -> bool:
        """Whether somebody waits for more of it."""
        return not self.ended and not all(one.cancelled for one in self.generations)

    @property
    def tokens_left(self) -> int:
        """How many more tokens it may have."""
        return self.sampling.max_tokens - len(self.said)

    def begin(self) -> None:
        """Note that the engine has been asked; harmless when repeated."""
        if not self.began:
            self.began = True
            for one in self.generations:
                one.begin()

    def take(
        self, tokens: Sequence[int], finish: str | None, *, stop_token: int | None, stop_tokens: Collection[int]
    ) -> None:
        """Hand on the next tokens, up to the first of `stop_tokens`; `stop_token` is what vLLM says it stopped at.

        Raises NonsenseError, BrokenOffError.
        """
        if tokens and stop_token == tokens[-1]:
            tokens = tokens[:-1]
        for token in tokens:
            if self.ended or (token not in stop_tokens and not self.tokens_left):
                raise NonsenseError(f"more than the {self.sampling.max_tokens} tokens that were asked for")
            if token in stop_tokens:
                self.end(Finish.STOP)
            else:
                self._put(token)
        if finish in ("stop", "length"):
            if not self.ended:
                self.end(Finish(finish))
        elif finish is not None:
            raise BrokenOffError(f"the engine ended the answer ({finish})")

    def _put(self, token: int) -> None:
        for one in self.generations:
            if not self.said:
                one.prefilled()
            one.put(token)
        self.said.append(token)

    def end(self, finish: Finish) -> None:
        """Complete it."""
        self.ended = True
        for one in self.generations:
            one.end(finish)

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        self.ended = True
        for one in self.generations:
            one.fail(error)


def make_samples(
    prompt: Prompt, sampling: SamplingParams, samples: int, *, max_positions: int, on_close: Callable[[], None]
) -> tuple[list[Sample], list[Generation]]:
    """Make the samples to ask vLLM for, and the generations that they feed.

    Raises InvalidRequestError for a prompt that leaves no room, and for a temperature that vLLM does not take.
    """
    if sampling.temperature > MAX_TEMPERATURE:
        raise InvalidRequestError(
            f"temperature must be 0 (greedy) to {MAX_TEMPERATURE:g} on this server, whose engine is vLLM, got "
            f"{sampling.temperature:g}"
        )
    params = sample_params(replace(sampling, max_tokens=answer_limit(prompt, sampling, max_positions)), samples)
    generations = [Generation(on_close=on_close) for _ in params]
    if sampling.temperature < GREEDY:
        return [Sample(generations=generations, sampling=params[0])], generations
    pairs = zip(generations, params, strict=True)
    return [Sample(generations=[one], sampling=own) for one, own in pairs], generations


def by_request(samples: list[Sample]) -> list[list[Sample]]:
    """Return the samples of each request: vLLM counts seeds, and does not begin again after the last one."""
    starts = [i for i, one in enumerate(samples) if i and one.sampling.seed % SEEDS == 0]
    return [samples[a:b] for a, b in pairwise([0, *starts, len(samples)])]


def count(samples: Collection[Sample]) -> tuple[int, int]:
    """Return how many generations have tokens, and how many wait for their first one."""
    said = sum(len(one.generations) for one in samples if one.open and one.said)
    return said, sum(len(one.generations) for one in samples if one.open and not one.said)
