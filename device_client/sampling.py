"""How the server samples an answer: options of the commands, and the message that carries them.

Promises that a value out of range is refused before anything is sent, and that a field which is added to `Sampling` is
an option of `ask` and `chat` and a field of the message at once. Leaves the sampling itself to the server's engine.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from tofc.errors import UsageError
from tofc.option_groups import Option
from tofc.v1 import tofc_pb2 as pb

_CHECKPOINT = "the checkpoint's"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is sampled; None leaves a value to the server's checkpoint.

    Without `seed` one is chosen for each question, so that asking again after a lost link repeats the answer.
    """

    max_tokens: Annotated[
        int,
        Option(
            envvar="TOFC_DEVICE_MAX_TOKENS",
            help="Stop an answer after N tokens, thinking included; 0: the server's default.",
            metavar="N",
        ),
    ] = 0
    temperature: Annotated[
        float | None,
        Option(
            envvar="TOFC_DEVICE_TEMPERATURE",
            help="How random the answer is, 0 to 10; 0 always takes the most likely token.",
            show_default=_CHECKPOINT,
            metavar="T",
        ),
    ] = None
    top_p: Annotated[
        float | None,
        Option(
            "--top-p",
            envvar="TOFC_DEVICE_TOP_P",
            help="Sample from the most likely tokens that together have probability P; 1 disables.",
            show_default=_CHECKPOINT,
            metavar="P",
        ),
    ] = None
    top_k: Annotated[
        int | None,
        Option(
            "--top-k",
            envvar="TOFC_DEVICE_TOP_K",
            help="Sample from the K most likely tokens; 0 disables.",
            show_default=_CHECKPOINT,
            metavar="K",
        ),
    ] = None
    seed: Annotated[
        int | None,
        Option(
            envvar="TOFC_DEVICE_SEED",
            help="The same seed gives the same answer.",
            show_default="random",
            metavar="N",
        ),
    ] = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_tokens < 2**32:
            raise UsageError(f"--max-tokens must be 0 (the server's default) to 2**32 - 1, got {self.max_tokens}")
        if self.temperature is not None and not 0 <= self.temperature <= 10:
            raise UsageError(f"--temperature must be 0 (always the most likely token) to 10, got {self.temperature:g}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p must be more than 0 and at most 1, got {self.top_p:g}")
        if self.top_k is not None and not 0 <= self.top_k < 2**32:
            raise UsageError(f"--top-k must be 0 (all tokens) to 2**32 - 1, got {self.top_k}")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise UsageError(f"--seed must be 0 to 2**64 - 1, got {self.seed}")

    def message(self, welcome: pb.Welcome, seed: int, *, samples: bool = False) -> pb.Sampling | None:
        """Return the message for the server, or None if it would only repeat the server's defaults.

        `seed` is sent if the user gave none and the answer is sampled at random. `samples`: it is found from samples.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        random = welcome.samples_by_default if self.temperature is None else self.temperature > 0
        if self.seed is None and (random or samples):
            values["seed"] = seed
        message = pb.Sampling(**values)
        return message if message.ListFields() else None
