"""Whether a packed forward gives every request the same bits alone and in company, on this machine.

    made-up prompts ─┬─ alone, row by row of the answer ─→ keys, values, logits ─┐
                     └─ together, in other steps ────────→ keys, values, logits ─┴─ equal?

Promises a comparison of every row's keys and values, because a difference in few rows would rarely change a token. Two
layers stand for all, whose products have the same shapes; it takes the time of about 1 000 rows in them. Leaves to the
engine what to do where it fails.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from edge_server.engine.kv_cache import KeyValueCache
from edge_server.engine.packed_decoder import STEP_ROWS, PackedDecoder, Segment

LENGTHS = (1, 3, 17, 60, STEP_ROWS - 46)  # rows of the made-up prompts: together more than a step has
LAYERS = 2
COPIES = 4  # of each prompt, which continue it together
TOKENS = 2  # that continue each prompt
SAME_FOR_EVERY_LENGTH = {"default", "linear", "llama3", "yarn"}  # rotary embeddings that depend on the position only


def is_exact(model: Qwen3ForCausalLM) -> bool:
    """Return whether packed forwards of this model give the same bits alone and in company."""
    config: Any = model.config
    if config.rope_parameters["rope_type"] not in SAME_FOR_EVERY_LENGTH:
        return False
    layers = config.num_hidden_layers
    config.num_hidden_layers = min(LAYERS, layers)  # transformers runs as many of the model's layers
    try:
        return _same_in_company(PackedDecoder(model, packed=True), _prompts(model))
    finally:
        config.num_hidden_layers = layers


def _same_in_company(decoder: PackedDecoder, prompts: list[Tensor]) -> bool:
    alone = [_continue(decoder, [prompt], copies=1, in_halves=False)[0] for prompt in prompts]
    for order, in_halves in ((range(len(prompts)), False), (range(len(prompts) - 1, -1, -1), True)):
        together = _continue(decoder, [prompts[index] for index in order], copies=COPIES, in_halves=in_halves)
        wanted = [alone[index] for index in order for _ in range(COPIES)]
        for found, expected in zip(together, wanted, strict=True):
            if not all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)):
                return False
    return True


def _prompts(model: Qwen3ForCausalLM) -> list[Tensor]:
    """Make prompts [n, H] of rows that are as long as those of tokens."""
    generator = torch.Generator().manual_seed(0)
    embedding: Any = model.get_input_embeddings()
    length = float(embedding.weight.detach().float().std())
    limit = model.config.max_position_embeddings - TOKENS
    sizes = sorted({min(rows, limit) for rows in LENGTHS})
    return [torch.randn(rows, model.config.hidden_size, generator=generator) * length for rows in sizes]


def _continue(decoder: PackedDecoder, prompts: list[Tensor], *, copies: int, in_halves: bool) -> list[list[Tensor]]:
    """Read prompts in one step or two, and continue copies of each: all keys, values and logits of each copy."""
    caches = [KeyValueCache(decoder.shape, len(prompt) + TOKENS * (copies == 1)) for prompt in prompts]
    halves = [len(prompt) // 2 // decoder.block * decoder.block for prompt in prompts]
    begun = [
        Segment(cache=cache, rows=prompt[:half])
        for cache, prompt, half in zip(caches, prompts, halves, strict=True)
        if half and in_halves
    ]
    if begun:
        decoder.run(begun)
    first = decoder.run(
        [Segment(cache=cache, rows=prompt[cache.length :]) for cache, prompt in zip(caches, prompts, strict=True)]
    )
    forks = [
        (cache.fork(TOKENS) if copies > 1 else cache, [logits])
        for cache, logits in zip(caches, first, strict=True)
        for _ in range(copies)
    ]
    for token in range(TOKENS):
        found = decoder.run([Segment(cache=cache, rows=token) for cache, _ in forks])
        for (_, seen), logits in zip(forks, found, strict=True):
            seen.append(logits)
    layers = range(decoder.shape.layers)
    return [[*seen, *(cache.read(layer, cache.length) for layer in layers)] for cache, seen in forks]
