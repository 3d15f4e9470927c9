"""What one sample said, and the messages that a round hands on.

    token ids ─ raw text ─ after its last </think> ─→ message
    samples of a round ─ sorted by length ─ shuffled ─ without empty ones ─→ messages, in the order of the references

Promises the order of the published code (`Exp._run_parallel_calls` of stepfun-ai/PaCoRe, MIT): ascending length of the
raw text, then `random.Random(42).shuffle`; samples that failed take part in both as empty text. Leaves the
prompt to `prompt`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from edge_server.detokenizer import Decode
from edge_server.engine.base import Finish
from edge_server.reasoning import ReasoningParser, ThinkTokens

SHUFFLE_SEED = 42


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample. `finish` is None if it was stopped (by the deadline, the token budget) or failed."""

    index: int  # in its round
    text: str = ""  # all that was generated, thinking included
    message: str = ""  # what follows the last `</think>`; the whole text if there is none
    finish: Finish | None = None
    failed: bool = False
    tokens: int = 0
    thinking_tokens: int = 0

    @property
    def usable(self) -> bool:
        """Whether it is a reference or a vote: it ended by itself, with an answer."""
        return self.finish is Finish.STOP and bool(self.message.strip())


def read_sample(
    index: int,
    ids: Sequence[int],
    finish: Finish | None,
    decode: Decode,
    think_tokens: ThinkTokens | None,
    *,
    inside: bool,
    failed: bool = False,
) -> Sample:
    """Return the sample of these token ids. `inside`: its prompt ends within thinking."""
    parser = ReasoningParser(decode, think_tokens, inside=inside)
    message = ""
    for delta in [one for token in ids for one in parser.push(token)] + parser.finish():
        message = "" if delta.restart else message
        message += "" if delta.thinking else delta.text
    text = decode(ids)
    if parser.unanswered:  # no `</think>` came
        message = text
    return Sample(
        index=index,
        text=text,
        message=message,
        finish=finish,
        failed=failed,
        tokens=parser.tokens,
        thinking_tokens=parser.thinking_tokens,
    )


def ordered_messages(samples: Sequence[Sample]) -> list[str]:
    """Return the messages of a round in the order in which the next prompt has them."""
    ordered = sorted(samples, key=lambda one: len(one.text) if one.usable else 0)  # stable: ties in their own order
    random.Random(SHUFFLE_SEED).shuffle(ordered)
    return [one.message for one in ordered if one.usable]
