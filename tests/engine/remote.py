"""What tests of engines elsewhere share: nano's decoder, its probe, and prompts of real questions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_server.engine.base import Generation, Prompt
from edge_server.engine.completion_request import CompletionFormat
from edge_server.engine.vllm_remote import RemoteModel
from edge_server.token_embedding import TABLE, TokenEmbedding
from tofc.model.checkpoint import Checkpoint
from tofc.model.identity_probe import IdentityProbe
from tofc.model.prompt import Turn, build, load_tokenizer
from tofc.model.shipped import NANO

STOP = 2  # nano's
THINGS = ("dog", "cat", "tree", "car", "sign", "cup", "key", "fish", "bird", "boat", "clock", "apple", "star")
ASKED = ("is there a {}?", "how many {}s are there?", "is the {} left of the tree?", "what is beside the {}?")


@cache
def nano() -> Checkpoint:
    return Checkpoint.open(NANO, "server")


@cache
def prompts() -> list[NDArray[np.float32]]:
    """Return 52 prompts [T, H]: questions, the chat template around them."""
    tokenizer, embed = load_tokenizer(nano()), TokenEmbedding(nano())
    turns = [[Turn(role="user", text=form.format(thing))] for thing in THINGS for form in ASKED]
    return [embed(build(tokenizer, one, []).ids) for one in turns]


def remote_model(**changed: Any) -> RemoteModel:
    given = {
        "probe": IdentityProbe.read(NANO),
        "form": CompletionFormat(dtype="float32", stop_tokens=[STOP]),
        "embed": TokenEmbedding(nano()),
        "vocabulary": nano().stored[TABLE].shape[0],
        "max_positions": 8192,
    }
    return RemoteModel(**given | changed)  # type: ignore[arg-type]


def knows_the_probe(rows: NDArray[np.float32]) -> dict[int, float]:
    """Answer the identity probe as nano does."""
    embed = TokenEmbedding(nano())
    for one in IdentityProbe.read(NANO).prompts:
        if np.array_equal(rows, embed(one.ids)):
            return dict(one.likeliest)
    raise AssertionError("these rows are not of the probe")


async def collect(generation: Generation) -> list[int]:
    return [token async for token in generation]


def as_prompts(rows: Sequence[NDArray[np.float32]]) -> list[Prompt]:
    return [Prompt(embeds=one) for one in rows]
