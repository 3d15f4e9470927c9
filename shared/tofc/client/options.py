"""The keywords of a question, and errors about keywords.

Promises that a value out of range is refused before anything is sent, and that the error names the keyword, not the
option of the command. Leaves what the values mean to `device_client.sampling`, and what holds for all questions to
`Configured`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, TypedDict

from device_client.options import ImageOptions, PacketOptions, ServerOptions
from device_client.reasoning import Reasoning
from device_client.sampling import Sampling
from tofc.client.argument_types import check_types
from tofc.errors import UsageError

_KEYWORDS = {
    field.name for group in (ServerOptions, PacketOptions, ImageOptions, Sampling, Reasoning) for field in fields(group)
} - {"server"}


class AskOptions(TypedDict, total=False):
    """Keywords of every `ask`. What is left out or None is set by the server's checkpoint."""

    max_tokens: int
    """Most tokens of the answer, thinking included; 0 for the server's default."""
    temperature: float | None
    """0 (always the most likely token) to 10."""
    top_p: float | None
    """Sample from the most likely tokens that together have this probability, more than 0 up to 1."""
    top_k: int | None
    """Sample from the K most likely tokens; 0 disables."""
    seed: int | None
    """The same seed gives the same answer; 0 to 2**64 - 1."""
    pacore: str | int | None
    """Answers that the model samples and reads before it answers: "low", "medium", "high", or their number."""
    vote: int | None
    """Answers that are sampled; the most frequent one is given."""
    rollouts: bool
    """Whether the samples of `pacore` or `vote` are sent too, as `Answer.rollouts`; False if left out."""
    token_budget: int
    """Most tokens of all samples together; 0 for no limit."""
    thinking: bool
    """Whether the model's thinking before its answer is sent too; False if left out."""
    timeout_s: float | None
    """Seconds until `DeadlineError`; None for no limit. Left out: the client's `timeout_s`."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """The options of one question, checked."""

    sampling: Sampling
    reasoning: Reasoning
    thinking: bool
    timeout_s: float | None


def read_options(default_timeout_s: float | None, options: AskOptions) -> Asking:
    """Check options.

    Raises UsageError for a value out of range, TypeError for one of another type or an option that does not exist.
    """
    rest: dict[str, Any] = dict(options)
    check_types(**rest)
    thinking = rest.pop("thinking", False)
    timeout_s = rest.pop("timeout_s", default_timeout_s)
    if unknown := rest.keys() - AskOptions.__annotations__.keys():
        raise TypeError(f"ask() has no option {min(unknown)!r}; it has {', '.join(AskOptions.__annotations__)}")
    chosen = {field.name: rest.pop(field.name) for field in fields(Reasoning) if field.name in rest}
    if isinstance(chosen.get("pacore"), Integral):
        chosen["pacore"] = str(chosen["pacore"])
    with errors_name_keywords():
        sampling, reasoning = Sampling(**rest), Reasoning(**chosen)
    return Asking(sampling=sampling, reasoning=reasoning, thinking=thinking, timeout_s=check_timeout(timeout_s))


def check_timeout(timeout_s: float | None) -> float | None:
    """Return `timeout_s`. Raises UsageError unless it is None or more than 0."""
    if timeout_s is not None and not timeout_s > 0:
        raise UsageError(f"timeout_s must be more than 0 seconds, or None for no limit, got {timeout_s:g}")
    return timeout_s


@contextmanager
def errors_name_keywords() -> Iterator[None]:
    """In errors of the block, name the keyword instead of the command's option: `top_p` instead of `--top-p`.

    >>> with errors_name_keywords():
    ...     Sampling(top_p=2)
    Traceback (most recent call last):
    tofc.errors.UsageError: top_p must be more than 0 and at most 1, got 2
    >>> with errors_name_keywords():  # an option of another program
    ...     raise UsageError("run: pip install --user pillow")
    Traceback (most recent call last):
    tofc.errors.UsageError: run: pip install --user pillow
    """
    try:
        yield
    except UsageError as error:
        error.args = (re.sub(r"--(\w[\w-]*)", _keyword, str(error)),)
        raise


def _keyword(option: re.Match[str]) -> str:
    """Return the keyword of an option; the option itself if it has none, for instance one of pip's."""
    name = option[1].replace("-", "_")
    return name if name in _KEYWORDS else option[0]
