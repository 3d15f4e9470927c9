"""Tokens in fixed shapes: the attention of the rows that count, whatever comes after them, and the memory they use.

The suite of all engines runs it too (`tests/engine/engines.py`): greedy answers to the test pictures' questions.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM
from typer.testing import CliRunner

from edge_server import engine_loading
from edge_server.cli import app
from edge_server.engine import qwen3
from edge_server.engine.base import Prompt
from edge_server.engine.kv_cache import KeyValueCache
from edge_server.engine.packed_decoder import PackedDecoder, Segment
from edge_server.engine.sampling import SamplingParams
from edge_server.engine.static_decoder import StaticDecoder, StaticStep
from edge_server.engine.transformers import TransformersEngine
from edge_server.settings import ServerSettings
from tests.engine.test_transformers_engine import collect, embeds, until_idle
from tofc.errors import CheckpointError, UsageError
from tofc.model.checkpoint import Checkpoint
from tofc.model.shipped import NANO


def small(**changes: Any) -> Qwen3ForCausalLM:
    torch.manual_seed(7)
    settings: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 64, "vocab_size": 61, "max_position_embeddings": 4096, "initializer_range": 0.5,
        "eos_token_id": None, "pad_token_id": 0, **changes,
    }  # fmt: skip
    return Qwen3ForCausalLM(Qwen3Config(**settings)).eval()


def run_tokens(decoder: PackedDecoder, cache: KeyValueCache, tokens: list[int]) -> list[Tensor]:
    return [decoder.run([Segment(cache=cache, rows=token)])[0] for token in tokens]


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "after a shared prompt"])
def test_logits_are_those_of_the_dynamic_path(shared: bool) -> None:
    model, rows, tokens = small(), torch.from_numpy(embeds(3, 21)), [5, 9, 0, 60, 5, 7]
    found = []
    for decoder in (PackedDecoder(model, packed=False), StaticDecoder(model)):
        cache = KeyValueCache(decoder.shape, len(rows) + (0 if shared else len(tokens)))
        first = decoder.run([Segment(cache=cache, rows=rows)])
        answer = cache.fork(len(tokens)) if shared else cache
        found.append([*first, *run_tokens(decoder, answer, tokens)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0][1], found[0][5])


def test_rows_that_do_not_count_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is not cleared when it is allocated, and may hold numbers that are not finite."""
    model, rows = small(), torch.from_numpy(embeds(3, 21))
    decoder = StaticDecoder(model)

    def answer() -> list[Tensor]:
        cache = KeyValueCache(decoder.shape, 40)
        return [*decoder.run([Segment(cache=cache, rows=rows)]), *run_tokens(decoder, cache, [1, 2, 3])]

    clean = answer()
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **more: empty(*shape, **more).fill_(torch.nan))
    for one, other in zip(clean, answer(), strict=True):
        assert torch.equal(one, other)


def test_one_step_serves_an_answer_until_its_cache_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    build = StaticStep.__init__

    def noted(step: StaticStep, model: Any, cache: KeyValueCache, groups: int) -> None:
        made.append(cache.length)
        build(step, model, cache, groups)

    monkeypatch.setattr(StaticStep, "__init__", noted)
    model, rows = small(), torch.from_numpy(embeds(3, 21))
    dynamic, decoder = PackedDecoder(model, packed=False), StaticDecoder(model)
    wanted = KeyValueCache(dynamic.shape, 30)
    cache = KeyValueCache(decoder.shape, 24)  # of three tokens
    for runner, each in ((dynamic, wanted), (decoder, cache)):
        runner.run([Segment(cache=each, rows=rows)])
    for one, other in zip(run_tokens(dynamic, wanted, [1] * 6), run_tokens(decoder, cache, [1] * 6), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert made == [21, 24, 25, 26]  # then it grows with every token
    cache.shrink(16)
    assert cache.static is None


async def test_a_failed_token_leaves_the_cache_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = StaticDecoder(small())
    cache = KeyValueCache(decoder.shape, 30)
    decoder.run([Segment(cache=cache, rows=torch.from_numpy(embeds(3, 21)))])
    run_tokens(decoder, cache, [4])
    attend = StaticStep.attend

    def fails(step: StaticStep, layer: int, *rest: Any) -> Tensor:
        if layer == 1:
            raise ArithmeticError("made up")
        return attend(step, layer, *rest)

    with monkeypatch.context() as broken, pytest.raises(ArithmeticError):
        broken.setattr(StaticStep, "attend", fails)
        run_tokens(decoder, cache, [5])
    assert cache.length == 22
    other = KeyValueCache(decoder.shape, 30)
    decoder.run([Segment(cache=other, rows=torch.from_numpy(embeds(3, 21)))])
    assert torch.equal(run_tokens(decoder, cache, [6])[0], run_tokens(decoder, other, [4, 6])[1])


async def test_questions_and_samples_in_company_get_their_own_answers() -> None:
    model = small()
    found = []
    for static in (False, True):
        engine = TransformersEngine(model, [], static=static)
        try:
            settings = SamplingParams(max_tokens=20)
            asked = [engine.submit(Prompt(embeds=embeds(n, 9 + n), client="a"), settings) for n in range(4)]
            asked += engine.submit_samples(
                Prompt(embeds=embeds(9, 300)), SamplingParams(max_tokens=20, temperature=2.0, seed=4), 3
            )
            found.append(await asyncio.gather(*map(collect, asked)))
            await until_idle(engine)
        finally:
            await engine.stop()
    assert found[0] == found[1]
    assert len({tuple(one) for one in found[0]}) == 7


def test_rotary_embeddings_that_depend_on_the_length_are_refused() -> None:
    model = small(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    with pytest.raises(CheckpointError, match="leave out --cuda-graph"):
        StaticDecoder(model)


def test_without_a_gpu_the_option_ends_the_command_with_one_sentence() -> None:
    result = CliRunner().invoke(app, ["serve", "--cuda-graph"])
    assert result.exit_code == 2
    assert result.output.splitlines() == [
        "edge-server: --cuda-graph needs a GPU of NVIDIA or AMD (--device cuda), but the device is cpu; leave it out"
    ]
    missing = CliRunner().invoke(app, ["serve", "--cuda-graph", "--device", "cuda"])
    assert missing.exit_code == 2 and len(missing.output.splitlines()) == 1
    assert "--device must be one that torch finds here (cpu)" in missing.output
    with pytest.raises(UsageError, match="is for --engine embedded"):
        ServerSettings(model=Path(), engine="vllm", device="cuda", cuda_graph=True)


async def test_the_option_reaches_the_engine(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO)
    settings = ServerSettings(model=NANO, device="cuda", dtype="float32", cuda_graph=True)
    load = qwen3.load_qwen3
    monkeypatch.setattr(qwen3, "load_qwen3", lambda checkpoint, device, dtype: load(checkpoint, dtype=dtype))
    engine = engine_loading.load_engine(settings, Checkpoint.open(NANO, "server"), [])
    try:
        assert isinstance(engine, TransformersEngine) and isinstance(engine._decoder, StaticDecoder)
        assert "no GPU has tried yet" in caplog.text
    finally:
        await engine.stop()
