"""The probe says whether a packed forward is exact, and where it says so, it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from edge_server.engine.kv_cache import KeyValueCache
from edge_server.engine.packed_decoder import PackedDecoder, Segment
from edge_server.engine.probe import is_exact
from edge_server.engine.qwen3 import load_qwen3
from tests.engine.nano import Nano
from tofc.model.checkpoint import Checkpoint
from tofc.model.shipped import NANO

TOKENS = (3, 9, 100, 22)


@pytest.fixture
def model() -> Qwen3ForCausalLM:
    return load_qwen3(Checkpoint.open(NANO, "server"))


def test_logits_are_bit_equal_alone_and_in_company(model: Qwen3ForCausalLM, nano: Nano) -> None:
    if not is_exact(model):
        pytest.skip("on this machine a packed forward is not exact; answers take turns")
    decoder = PackedDecoder(model, packed=True)
    random = np.random.default_rng(0)
    prompts = [torch.from_numpy(prompt.embeds) for prompt in nano.prompts[:52]]
    prompts += [torch.cat(prompts[:number]) for number in (2, 5, 9, 13)]  # up to 700 rows
    alone = []
    for prompt in prompts:
        cache = KeyValueCache(decoder.shape)
        steps = [prompt, *TOKENS]
        alone.append([decoder.run([Segment(cache=cache, rows=rows)])[0] for rows in steps])
    caches = [KeyValueCache(decoder.shape) for _ in prompts]
    found: list[list[Tensor]] = [[] for _ in prompts]
    joins = random.integers(0, 9, len(prompts))
    step = 0
    while any(len(one) <= len(TOKENS) for one in found):
        segments, owners = [], []
        for index in random.permutation(len(prompts)):
            cache, prompt = caches[index], prompts[index]
            if joins[index] > step or len(found[index]) > len(TOKENS):
                continue
            if cache.length < len(prompt):
                rows = prompt[cache.length : cache.length + decoder.block * int(random.integers(1, 9))]
                segments.append(Segment(cache=cache, rows=rows))
            else:
                segments.append(Segment(cache=cache, rows=TOKENS[len(found[index]) - 1]))
            owners.append(index)
        for index, logits in zip(owners, decoder.run(segments), strict=True):
            if caches[index].length >= len(prompts[index]):
                found[index].append(logits)
        step += 1
    assert all(
        torch.equal(one, other) for pair in zip(found, alone, strict=True) for one, other in zip(*pair, strict=True)
    )


def test_products_that_depend_on_company_are_noticed(model: Qwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    layer: Any = model.model.layers[0].mlp.down_proj
    forward = layer.forward

    def rounded(rows: Tensor) -> Tensor:  # the last row, if there are many, a little different
        out: Tensor = forward(rows)
        if out.shape[1] > 100:
            out[0, -1] *= 1 + 1e-5
        return out

    monkeypatch.setattr(layer, "forward", rounded)
    assert not is_exact(model)
    assert model.config.num_hidden_layers == 4


def test_rotary_embeddings_that_depend_on_the_length_are_not_exact(
    model: Qwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(model.config.rope_parameters, "rope_type", "dynamic")
    assert not is_exact(model)
