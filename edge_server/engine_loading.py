"""Which engine a server uses, by its settings, and loading it.

    embedded      in this process, by transformers    vllm-remote   vLLM elsewhere, over HTTP    vllm   in this process

Promises that what an engine needs is imported only if it is chosen: before vLLM elsewhere, a server loads neither torch
nor a decoder. Leaves answering to `edge_server.engine`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_server.engine.base import Engine
from edge_server.placement import compute_dtype, out_of_memory_said
from edge_server.settings import MIB, ServerSettings
from edge_server.token_embedding import TABLE, TokenEmbedding
from tofc.errors import CheckpointError, UsageError
from tofc.install import install
from tofc.model.checkpoint import Checkpoint
from tofc.rpc.tokens import read_tokens
from tofc.secret_file import check_private

log = logging.getLogger(__name__)

TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def hide_torch() -> None:
    """Let this process run as if torch were not installed: transformers imports it even for a tokenizer."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that models need torch
    if "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]  # importing it now raises ModuleNotFoundError


def load_engine(settings: ServerSettings, checkpoint: Checkpoint, stop_tokens: Sequence[int]) -> Engine:
    """Load or find the engine of the settings. Raises UsageError (CheckpointError), UnavailableError."""
    if settings.engine == "embedded":
        return _embedded(settings, checkpoint, stop_tokens)
    if settings.engine == "vllm":
        return _vllm(settings, checkpoint, stop_tokens)
    return _vllm_remote(settings, checkpoint, stop_tokens)


def _embedded(settings: ServerSettings, checkpoint: Checkpoint, stop_tokens: Sequence[int]) -> Engine:
    from edge_server.engine.probe import is_exact
    from edge_server.engine.qwen3 import load_qwen3
    from edge_server.engine.transformers import TransformersEngine

    dtype = compute_dtype(checkpoint, settings)
    with out_of_memory_said("the decoder", checkpoint, settings):
        model = load_qwen3(checkpoint, device=settings.device, dtype=dtype)
    packed = not settings.cuda_graph and is_exact(model)
    if settings.cuda_graph:
        log.warning("tokens are replayed as CUDA graphs (--cuda-graph), which no GPU has tried yet (docs/gpu.md)")
    elif not packed:
        log.info("answers take turns: on this machine a shared forward in %s would change their bits", dtype)
    engine = TransformersEngine(
        model,
        stop_tokens,
        parallel=settings.engine_parallel,
        queue=settings.engine_queue,
        cache_bytes=settings.key_value_bytes,
        packed=packed,
        static=settings.cuda_graph,
    )
    log.info(
        "keys and values may take %d MiB (--engine-cache-mib), enough for %d answers of all %d positions",
        settings.key_value_bytes // MIB,
        engine.full_answers,
        engine.max_positions,
    )
    if engine.max_positions < model.config.max_position_embeddings:
        log.warning(
            "a question and its answer may have %d of the model's %d positions; more would not fit into "
            "--engine-cache-mib %d",
            engine.max_positions,
            model.config.max_position_embeddings,
            settings.key_value_bytes // MIB,
        )
    return engine


def _vllm_remote(settings: ServerSettings, checkpoint: Checkpoint, stop_tokens: Sequence[int]) -> Engine:
    from edge_server.engine.completion_request import CompletionFormat
    from edge_server.engine.vllm_remote import RemoteModel, VllmRemoteEngine, find_engines
    from tofc.model.identity_probe import IdentityProbe

    probe = IdentityProbe.read(checkpoint.path)
    if probe.model_id != checkpoint.model_id:
        raise CheckpointError(
            f"the probe in {checkpoint.path} is of the model {probe.model_id}, the weights are of "
            f"{checkpoint.model_id}; write it again: tofc-lab probe {checkpoint.path}"
        )
    model = RemoteModel(
        probe=probe,
        form=CompletionFormat(dtype=_dtype(settings, checkpoint), stop_tokens=stop_tokens),
        embed=TokenEmbedding(checkpoint),
        vocabulary=checkpoint.stored[TABLE].shape[0],
        max_positions=int(checkpoint.config.text["max_position_embeddings"]),
    )
    key = _read_key(settings.engine_key_file)
    engines = asyncio.run(find_engines(settings.engine_urls, key, model))
    return VllmRemoteEngine(engines, key, model, parallel=settings.engine_parallel, queue=settings.engine_queue)


def _vllm(settings: ServerSettings, checkpoint: Checkpoint, stop_tokens: Sequence[int]) -> Engine:
    try:
        from edge_server.engine.vllm import VllmEngine
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "vllm":
            raise
        raise UsageError(
            f"--engine vllm needs vLLM in this Python environment: {install('server')}, then `pip install vllm`; or "
            "run vLLM in another one and use --engine vllm-remote (docs/serving.md)"
        ) from None
    if checkpoint.side is None:
        raise CheckpointError(
            f"{checkpoint.path} is a whole checkpoint; vLLM loads its server half: write it with `tofc-lab split`, and "
            "give its folder with --model"
        )
    return VllmEngine.of(
        checkpoint.path,
        stop_tokens,
        model_id=checkpoint.model_id,
        dtype=_dtype(settings, checkpoint),
        parallel=settings.engine_parallel,
        queue=settings.engine_queue,
    )


def _dtype(settings: ServerSettings, checkpoint: Checkpoint) -> str:
    """Return the engine's number format: the given one, else the checkpoint's, which vLLM takes too."""
    return settings.engine_dtype or TYPES[checkpoint.stored[TABLE].dtype]


def _read_key(file: Path | None) -> str | None:
    """Read an API key. Raises UsageError (SecurityError), OSError."""
    if file is None:
        return None
    key = read_tokens(file)[0].value
    check_private(file)
    return key
