"""Answers from several samples, as the server finds them: options of the commands, and the message that carries them.

Promises that a value out of range is refused before anything is sent, and that a server which takes no samples is told
apart from one that would ignore them. Leaves sampling, synthesis and counting to the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

from tofc.errors import LimitError, MismatchError, UsageError
from tofc.option_groups import Option
from tofc.v1 import tofc_pb2 as pb

#: PaCoRe's published settings: samples of each round; one answer follows them
PRESETS: Mapping[str, tuple[int, ...]] = MappingProxyType({"low": (4,), "medium": (16,), "high": (32, 4)})
MOST = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class Reasoning:
    """How many samples an answer is found from; by default none."""

    pacore: Annotated[
        str | None,
        Option(
            envvar="TOFC_DEVICE_PACORE",
            help="Have the model read N sampled answers of its own before it answers (PaCoRe): a number, or low (4), "
            "medium (16), high (32, then 4 that have read them).",
            show_default=False,
            metavar="N",
        ),
    ] = None
    vote: Annotated[
        int | None,
        Option(
            envvar="TOFC_DEVICE_VOTE",
            help="Sample N answers and give the most frequent one; for short answers.",
            show_default=False,
            metavar="N",
        ),
    ] = None
    rollouts: Annotated[
        bool,
        Option(
            "--rollouts",
            envvar="TOFC_DEVICE_ROLLOUTS",
            help='With --pacore or --vote: receive every sample, for the field "rollouts" of JSON.',
        ),
    ] = False
    token_budget: Annotated[
        int,
        Option(
            envvar="TOFC_DEVICE_TOKEN_BUDGET",
            help="With --pacore or --vote: most tokens of all samples together, thinking included; 0: no limit.",
            metavar="N",
        ),
    ] = 0

    def __post_init__(self) -> None:
        if self.pacore is not None and self.vote is not None:
            raise UsageError(
                f"--pacore {self.pacore} and --vote {self.vote} are two ways to use samples; leave one of them out"
            )
        if self.pacore is not None and self.pacore not in PRESETS and not _is_count(self.pacore):
            raise UsageError(
                f"--pacore must be {', '.join(PRESETS)}, or a number of samples of at least 1, got {self.pacore!r}"
            )
        if self.vote is not None and not 1 <= self.vote <= MOST:
            raise UsageError(f"--vote must be at least 1, got {self.vote}")
        if not 0 <= self.token_budget <= MOST:
            raise UsageError(f"--token-budget must be 0 (no limit) to 2**32 - 1, got {self.token_budget}")
        for option, given in (("--rollouts", self.rollouts), ("--token-budget", self.token_budget)):
            if given and not self.samples:
                raise UsageError(f"{option} belongs to --pacore or --vote; add one of them, or leave {option} out")

    @property
    def rounds(self) -> tuple[int, ...]:
        """Samples of each round of PaCoRe; none for a vote or a plain answer."""
        if self.pacore is None:
            return ()
        return PRESETS.get(self.pacore) or (int(self.pacore),)

    @property
    def samples(self) -> int:
        """Samples of all rounds, or those voted on; 0: the question is answered once."""
        return sum(self.rounds) or self.vote or 0

    def check_limits(self, limits: pb.Limits) -> None:
        """Raise MismatchError or LimitError for what the server would refuse, or, an older one, ignore."""
        option = "--vote" if self.pacore is None else "--pacore"
        if self.samples and not limits.samples:
            raise MismatchError(
                f"this server takes no samples ({option}); leave {option} out, or update or start it with --samples",
                reason="SAMPLES_NOT_TAKEN",
            )
        if self.samples > limits.samples:
            raise LimitError(
                f"{self.samples} samples, this server allows {limits.samples}; lower {option}", reason="LIMIT_EXCEEDED"
            )

    def message(self) -> pb.Reasoning | None:
        """Return the message for the server; None for a plain answer."""
        if not self.samples:
            return None
        return pb.Reasoning(
            rounds=self.rounds, vote=self.vote or 0, rollouts=self.rollouts, token_budget=self.token_budget
        )


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and 1 <= int(text[:20]) <= MOST
