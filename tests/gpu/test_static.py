"""Tokens in fixed shapes on a pretended GPU: what is recorded there could be recorded as a CUDA graph."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.launches import counted
from benchmarks.pretended_gpu import pretend_gpu
from edge_server.engine import static_decoder
from edge_server.engine.base import Prompt
from edge_server.engine.qwen3 import load_qwen3
from edge_server.engine.sampling import SamplingParams
from edge_server.engine.transformers import TransformersEngine
from tests.engine.test_transformers_engine import collect
from tests.gpu.conftest import mutate
from tofc.model.checkpoint import Checkpoint
from tofc.model.shipped import NANO

Compute = Callable[[], Tensor]


class Operators(TorchDispatchMode):
    """Notes every operator with the shapes that it takes, and the addresses of tensors that are there before."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs or {}))
        self.seen.append((func, *(tuple(one.shape) if isinstance(one, Tensor) else one for one in leaves)))
        return func(*args, **kwargs or {})


def answers(device: str, dtype: torch.dtype) -> list[list[int]]:
    rows = [torch.randn(40, 256, generator=torch.Generator().manual_seed(n)).numpy() * 0.05 for n in range(2)]

    async def ask() -> list[list[int]]:
        model = load_qwen3(Checkpoint.open(NANO, "server"), device=device, dtype=dtype)
        engine = TransformersEngine(model, [], static=True)
        try:
            asked = [engine.submit(Prompt(embeds=one), SamplingParams(max_tokens=6)) for one in rows]
            asked += engine.submit_samples(Prompt(embeds=rows[0]), SamplingParams(max_tokens=6), 2)
            return list(await asyncio.gather(*map(collect, asked)))
        finally:
            await engine.stop()

    return asyncio.run(ask())


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Compute]:
    """Compute instead of recording: a pretended GPU has no graphs."""
    found: list[Compute] = []

    def keep(compute: Compute, device: torch.device) -> Compute:
        assert device.type == "cuda"
        found.append(compute)
        return compute

    monkeypatch.setattr(static_decoder, "record", keep)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_are_those_of_the_cpu(recorded: list[Compute], dtype: torch.dtype) -> None:
    with pretend_gpu():
        found = answers("cuda", dtype)
    assert len(recorded) == len(found) == 4, "one recording an answer"
    recorded.clear()
    with pytest.MonkeyPatch.context() as on_cpu:
        on_cpu.setattr(static_decoder, "record", lambda compute, device: compute)
        assert found == answers("cpu", dtype)


def test_what_is_recorded_has_fixed_shapes_and_neither_copies_nor_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[tuple[Any, ...]]] = []

    with counted() as launches:

        def keep(compute: Compute, device: torch.device) -> Compute:
            def replay() -> Tensor:
                before = (launches.copies_to_host, launches.copies_to_gpu, launches.syncs)
                with Operators() as operators:
                    result = compute()
                assert (launches.copies_to_host, launches.copies_to_gpu, launches.syncs) == before
                seen.append(operators.seen)
                return result

            return replay

        monkeypatch.setattr(static_decoder, "record", keep)
        answers("cuda", torch.float32)
    assert len(seen) == 4 * 5 and len(seen[0]) > 100  # the first token of each comes from the prompt
    assert len({repr(one) for one in seen}) == 2, "one list for answers of their own, one for samples"


def test_a_step_that_copies_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, static_decoder.StaticStep, "_compute", "[0].float()", "[0].float().cpu()")
    with pytest.raises(AssertionError):
        test_what_is_recorded_has_fixed_shapes_and_neither_copies_nor_waits(monkeypatch)
