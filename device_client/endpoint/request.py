"""The body of a chat completion → what is asked, and how.

Promises that a field which would change the answer is honoured or refused by its name, that fields of a wrong type are
refused with their path, and that others are ignored; those of them that OpenAI defines are named in `ignored`. Leaves
messages to `messages` and ranges of sampling to `device_client.sampling`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from device_client.endpoint.errors import invalid
from device_client.endpoint.fields import Fields, checked_text, wrong
from device_client.endpoint.messages import ORDERS, Media, read_messages
from device_client.reasoning import Reasoning
from device_client.sampling import Sampling
from tofc.errors import UsageError
from tofc.model.prompt import Turn

MOST_CHOICES = 8
MOST_STOPS = 4  # as OpenAI
#: these would change the answer, but only its form or its odds: clients that send them expect one all the same
IGNORED = (
    "response_format", "tools", "functions", "presence_penalty", "frequency_penalty", "repetition_penalty", "min_p",
    "logit_bias", "reasoning_effort", "verbosity",
)  # fmt: skip
NEUTRAL: Mapping[str, object] = {
    "presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1, "min_p": 0, "tools": [], "functions": [],
    "logit_bias": {}, "response_format": {"type": "text"},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """One request, checked."""

    turns: tuple[Turn, ...]
    media: tuple[Media, ...]
    """In the order in which the turns show them."""
    sampling: Sampling
    reasoning: Reasoning
    stop: tuple[str, ...] = ()
    choices: int = 1
    stream: bool = False
    include_usage: bool = False
    """Whether a stream ends with the usage."""
    include_thinking: bool = True
    """Whether the client gets what the model thinks, as `reasoning_content`."""
    thinking_budget: int | None = None
    """Tokens; None: the endpoint's default."""
    timeout_s: float | None = None
    """None: the endpoint's default."""
    ignored: tuple[str, ...] = ()
    """Fields that had no effect."""


def read_request(body: object, *, order: str = ORDERS[0]) -> ChatRequest:
    """Read the body of a request. Raises ApiError."""
    fields = Fields(body)
    if not fields.has("messages"):
        raise invalid("messages", "messages is missing; send the conversation", code="missing_field")
    turns, media = read_messages(fields.array("messages"), order=order)
    _refuse_unsupported(fields)
    sampling, reasoning = _sampling(fields), _reasoning(fields)
    choices = fields.whole("n")
    if choices is not None and not 1 <= choices <= MOST_CHOICES:
        raise invalid("n", f"n must be 1 to {MOST_CHOICES}, got {choices}")
    timeout_s = fields.number("timeout")
    if timeout_s is not None and timeout_s <= 0:
        raise invalid("timeout", f"timeout must be more than 0 seconds, got {timeout_s:g}")
    _ = fields.text("model")  # one model is served, whatever it is called
    return ChatRequest(
        turns=tuple(turns),
        media=tuple(media),
        sampling=sampling,
        reasoning=reasoning,
        stop=_stop(fields),
        choices=choices or 1,
        stream=fields.flag("stream", False),
        include_usage=fields.object("stream_options").flag("include_usage", False),
        include_thinking=fields.flag("include_reasoning", True),
        thinking_budget=_thinking_budget(fields),
        timeout_s=timeout_s,
        ignored=tuple(name for name in IGNORED if fields.has(name) and fields.raw(name) != NEUTRAL.get(name)),
    )


def _refuse_unsupported(fields: Fields) -> None:
    if fields.flag("logprobs", False) or fields.whole("top_logprobs"):
        raise invalid(
            "logprobs", "logprobs are not available; leave logprobs and top_logprobs out", code="unsupported_parameter"
        )
    choice = fields.raw("tool_choice")
    if choice is not None and choice not in ("none", "auto"):
        raise invalid(
            "tool_choice",
            'the model calls no tools, so a call cannot be required; leave tool_choice out, or send "auto"',
            code="unsupported_parameter",
        )


def _sampling(fields: Fields) -> Sampling:
    name = "max_completion_tokens" if fields.has("max_completion_tokens") else "max_tokens"
    max_tokens = fields.whole(name)
    if max_tokens is not None and max_tokens < 1 and max_tokens != -1:  # -1: llama.cpp's "no limit"
        raise invalid(name, f"{name} must be at least 1, got {max_tokens}")
    top_k, seed = fields.whole("top_k"), fields.whole("seed")
    given: dict[str, Any] = {
        "max_tokens": min(max(max_tokens or 0, 0), 2**32 - 1),
        "temperature": fields.number("temperature"),
        "top_p": fields.number("top_p"),
        "top_k": 0 if top_k == -1 else top_k,  # vLLM's "off"
        "seed": None if seed is None else seed % 2**64,
    }
    try:
        return Sampling(**given)
    except UsageError as error:
        raise _named(error, given) from None


def _reasoning(fields: Fields) -> Reasoning:
    pacore = fields.raw("pacore")
    if isinstance(pacore, bool) or not isinstance(pacore, (str, int, type(None))):
        raise wrong("pacore", "low, medium, high or a number of samples", pacore)
    if isinstance(pacore, str):
        checked_text("pacore", pacore)
    given: dict[str, Any] = {
        "pacore": None if pacore is None else str(pacore),
        "vote": fields.whole("vote"),
        "rollouts": fields.flag("rollouts", False),
        "token_budget": fields.whole("token_budget") or 0,
    }
    try:
        return Reasoning(**given)
    except UsageError as error:
        raise _named(error, given) from None


def _named(error: UsageError, given: Mapping[str, object]) -> Exception:
    """Return the error with the request's names instead of the command's: `top_p` for `--top-p`."""
    found = [name.replace("-", "_") for name in re.findall(r"--([a-z][a-z-]*)", str(error))]
    text = re.sub(r"--([a-z][a-z-]*)", lambda option: option[1].replace("-", "_"), str(error))
    return invalid(next((name for name in found if name in given), None), text)


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.raw("stop")
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
        raise wrong("stop", "a string or an array of strings", value)
    stops = [checked_text("stop", one) for one in stops if one]
    if len(stops) > MOST_STOPS:
        raise invalid("stop", f"stop must have at most {MOST_STOPS} texts, got {len(stops)}")
    return tuple(stops)


def _thinking_budget(fields: Fields) -> int | None:
    """Return the tokens for thinking, by any of the names that clients use."""
    template = fields.object("chat_template_kwargs")
    for source, name in ((fields, "thinking_budget"), (fields, "thinking_token_budget"), (template, "thinking_budget")):
        if (budget := source.whole(name)) is not None:
            if not 0 <= budget < 2**32:
                raise invalid(source.path(name), f"{source.path(name)} must be 0 or more tokens, got {budget}")
            return budget
    return None if template.flag("enable_thinking", True) else 0
