"""The options of `device-client bench` that it has alone: which links, how many questions, how results are shown.

Promises that a link or number which is not allowed is refused before anything is opened. Leaves links to `link_shape`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from device_client.link_shape import LinkShape, parse_link
from device_client.question import check_text
from tofc.errors import UsageError
from tofc.option_groups import Option


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is measured."""

    link: Annotated[
        list[str],
        Option(
            "--link",
            envvar="TOFC_DEVICE_BENCH_LINK",
            help="The link to behave like: 3g, lte, wifi, or RATE[,RTT[,LOSS[,JITTER]]] such as 25KB/s or "
            "1Mbit/s,60ms,1%; UP:DOWN for two rates. Repeat the option to compare links.",
            show_default="the real one",
            metavar="LINK",
        ),
    ] = field(default_factory=list)
    rounds: Annotated[
        int,
        Option("--rounds", envvar="TOFC_DEVICE_BENCH_ROUNDS", help="Questions about each kind of file.", metavar="N"),
    ] = 9
    question: Annotated[
        str, Option("--question", "-q", envvar="TOFC_DEVICE_BENCH_QUESTION", help="What is asked.", metavar="TEXT")
    ] = "what number is on the sign?"
    seed: Annotated[
        int, Option("--seed", envvar="TOFC_DEVICE_BENCH_SEED", help="Of the link's losses and jitter.", metavar="N")
    ] = 0
    as_json: Annotated[
        bool, Option("--json", envvar="TOFC_DEVICE_JSON", help="Print one JSON object per link, for programs.")
    ] = False

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"--rounds must be 1 or more, got {self.rounds}")
        check_text(self.question)
        _ = self.shapes  # checks every link

    @property
    def shapes(self) -> list[LinkShape]:
        """The links."""
        return [parse_link(one) for one in self.link]
