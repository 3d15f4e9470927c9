"""What arrives of a question's samples: how far they are, and their texts where they were requested.

Promises that pieces of one sample become one rollout, in the order of rounds and samples. Leaves bounding their number
to `reply_limit`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tofc.v1 import tofc_pb2 as pb

_FINISH = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_CANCELLED: "cancelled",
}


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One sample, without its thinking."""

    round: int
    """From 1."""
    text: str
    finish_reason: str
    """"stop"; "length": cut at the token limit; "cancelled": stopped by the deadline or the token budget; "failed".
    Only samples that ended with "stop" are used."""
    new_tokens: int
    """Generated, thinking included."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the samples of a question are.

    >>> str(Progress(round=1, rounds=2, ended=7, samples=32))
    '7 of 32 samples, round 1 of 2'
    """

    round: int
    """From 1."""
    rounds: int
    """In all."""
    ended: int
    """Samples of this round that have ended."""
    samples: int
    """Samples of this round."""

    def __str__(self) -> str:
        rounds = f", round {self.round} of {self.rounds}" if self.rounds > 1 else ""
        return f"{self.ended} of {self.samples} samples{rounds}"


@dataclass(kw_only=True)
class SampleStatus:
    """The samples of one attempt to ask a question."""

    progress: Progress | None = None
    _texts: dict[tuple[int, int], list[str]] = field(default_factory=dict)  # by round and sample
    _ended: dict[tuple[int, int], pb.Rollout] = field(default_factory=dict)

    def add(self, event: pb.Progress | pb.Rollout) -> None:
        """Take what the server sent."""
        if isinstance(event, pb.Progress):
            self.progress = Progress(round=event.round, rounds=event.rounds, ended=event.ended, samples=event.samples)
            return
        key = (event.round, event.sample)
        self._texts.setdefault(key, []).append(event.text)
        self._ended[key] = event

    @property
    def doing(self) -> str:
        """For a person: how far the samples are; empty before they began, and once the answer is being written."""
        if self.progress is None:
            return ""
        of = self.progress
        if of.ended >= of.samples and of.round >= of.rounds:
            return "reading the samples"
        return str(of)

    @property
    def rollouts(self) -> tuple[Rollout, ...]:
        """The samples that were received."""
        return tuple(
            Rollout(
                round=key[0],
                text="".join(self._texts[key]),
                finish_reason=_FINISH.get(end.finish_reason, "failed"),
                new_tokens=end.new_tokens,
            )
            for key, end in sorted(self._ended.items())
        )
