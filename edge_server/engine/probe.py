"""Whether a packed forward gives every request the same bits alone and in company, on this machine.

    made-up prompts ─┬─ alone, row by row of the answer ─→ keys, values, logits ─┐
                     └─ together, in other steps ────────→ keys, values, logits ─┴─ equal?

Promises a comparison of every row in every layer, because a difference in few rows would rarely change a token. Takes
about 800 rows of the decoder's time. Leaves to the engine what to do where it fails.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from edge_server.engine.kv_cache import KeyValueCache
from edge_server.engine.packed_decoder import STEP_ROWS, PackedDecoder, Segment

LENGTHS = (1, 3, 17, 40, 75, STEP_ROWS)  # rows of the made-up prompts
COPIES = 4  # of each prompt, which continue it together
TOKENS = 2  # that continue each prompt
SAME_FOR_EVERY_LENGTH = {"default", "linear", "llama3", "yarn"}  # rotary embeddings that depend on the position only


def is_exact(model: Qwen3ForCausalLM) -> bool:
    """Return whether packed forwards of this model give the same bits alone and in company."""
    config: Any = model.config
    if config.rope_parameters["rope_type"] not in SAME_FOR_EVERY_LENGTH:
        return False
    decoder = PackedDecoder(model, packed=True)
    prompts = _prompts(model)
    alone = [_continue(decoder, [prompt], copies=1) for prompt in prompts]
    for company in (prompts, prompts[::-1], [*prompts[1::2], *prompts[::2]]):
        together = _continue(decoder, company, copies=COPIES)
        order = [index for one in company for index, prompt in enumerate(prompts) if prompt is one]
        for place, index in enumerate(order):
            for found in together[place * COPIES : (place + 1) * COPIES]:
                if not all(torch.equal(one, other) for one, other in zip(found, alone[index][0], strict=True)):
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


def _continue(decoder: PackedDecoder, prompts: list[Tensor], copies: int) -> list[list[Tensor]]:
    """Read the prompts in two steps and continue copies of each: all keys, values and logits of each copy."""
    caches = [KeyValueCache(decoder.shape) for _ in prompts]
    halves = [len(prompt) // 2 // decoder.block * decoder.block for prompt in prompts]
    begun = [
        Segment(cache=cache, rows=prompt[:half])
        for cache, prompt, half in zip(caches, prompts, halves, strict=True)
        if half and len(prompts) > 1  # a prompt alone is read in one step
    ]
    if begun:
        decoder.run(begun)
    first = decoder.run(
        [Segment(cache=cache, rows=prompt[cache.length :]) for cache, prompt in zip(caches, prompts, strict=True)]
    )
    forks = [
        (cache.fork() if copies > 1 else cache, [logits])
        for cache, logits in zip(caches, first, strict=True)
        for _ in range(copies)
    ]
    for token in range(TOKENS):
        found = decoder.run([Segment(cache=cache, rows=token) for cache, _ in forks])
        for (_, seen), logits in zip(forks, found, strict=True):
            seen.append(logits)
    layers = range(decoder.shape.layers)
    return [[*seen, *(cache.read(layer, cache.length) for layer in layers)] for cache, seen in forks]
