"""How a question's samples are spread over rounds, checked; and how they are sampled.

Promises that every number of a client is within the server's limit before a sample is begun. Leaves the order of work
to `run`.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_server.engine.sampling import SamplingParams
from tofc.errors import InvalidRequestError, MismatchError
from tofc.v1 import tofc_pb2 as pb

MAX_ROUNDS = 8
#: Of a question's deadline, the share that is kept for what follows the samples: an answer that reads them, or a count.
SYNTHESIS_SHARE = 1 / 4
VOTE_SHARE = 1 / 16


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """The samples of one question: `widths` of each round, whose answers are voted on or lead to a synthesis."""

    widths: tuple[int, ...]
    vote: bool = False
    rollouts: bool = False  # whether the client wants to see the samples
    token_budget: int = 0  # new tokens of all samples; 0: no limit

    @classmethod
    def of(cls, asked: pb.Reasoning, most_samples: int) -> Rounds:
        """Read a question's message. `most_samples`: the limit of one question, 0: none are taken.

        Raises MismatchError (SAMPLES_NOT_TAKEN), InvalidRequestError (REASONING_INVALID, TOO_MANY_SAMPLES).
        """
        if not most_samples:
            raise MismatchError(
                "this server answers each question once and takes no reasoning by samples; ask without it, or start "
                "the server with --samples of at least 1",
                reason="SAMPLES_NOT_TAKEN",
            )
        widths = tuple(asked.rounds[: MAX_ROUNDS + 1])  # no copy of an endless list
        if bool(widths) == bool(asked.vote):
            both = f"rounds {list(widths)} and vote {asked.vote}" if widths else "neither"
            raise InvalidRequestError(
                f"reasoning must have either rounds or vote, got {both}; set one of them", reason="REASONING_INVALID"
            )
        if len(widths) > MAX_ROUNDS or 0 in widths:
            raise InvalidRequestError(
                f"reasoning must have 1 to {MAX_ROUNDS} rounds of at least 1 sample each, got {list(widths)}; for "
                "instance [16], or [32, 4]",
                reason="REASONING_INVALID",
            )
        widths = widths or (asked.vote,)
        if sum(widths) > most_samples:
            raise InvalidRequestError(
                f"a question may have {most_samples} samples in all, got {sum(widths)}; ask for fewer, or start the "
                "server with a larger --samples",
                reason="TOO_MANY_SAMPLES",
            )
        return cls(widths=widths, vote=bool(asked.vote), rollouts=asked.rollouts, token_budget=asked.token_budget)

    def seconds(self, index: int, deadline_s: float) -> float:
        """Return how long after the question's arrival round `index` must be over, if its deadline is `deadline_s`."""
        kept = VOTE_SHARE if self.vote else SYNTHESIS_SHARE
        return deadline_s * (1 - kept) * (index + 1) / len(self.widths)


def sample_sampling(asked: pb.Sampling, of_answer: SamplingParams) -> SamplingParams:
    """Return how the samples are sampled: temperature 1, top-p 1 and top-k off, but for what the question sets.

    These are the published settings. A checkpoint's defaults do not count: those of a model that answers greedily would
    give the same sample again and again. Raises InvalidRequestError (REASONING_INVALID) for temperature 0.
    """
    temperature = asked.temperature if asked.HasField("temperature") else 1.0
    if temperature == 0.0:
        raise InvalidRequestError(
            "samples at temperature 0 are all equal; leave the temperature out (the samples' is then 1), or set it to "
            "more than 0",
            reason="REASONING_INVALID",
        )
    return SamplingParams(
        max_tokens=of_answer.max_tokens,
        temperature=temperature,
        top_p=asked.top_p if asked.HasField("top_p") else 1.0,
        top_k=asked.top_k if asked.HasField("top_k") else 0,
        seed=of_answer.seed,
    )
