"""The decoder of a checkpoint as transformers' Qwen3, and what only it knows: its token embedding.

Promises to read the decoder's tensors and no others, each once, without a second copy at full size.
Leaves running it to `transformers`, but says what that calls its cache.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from edge_server.assemble import Embed
from shared.model.checkpoint import Checkpoint
from shared.model.config import CheckpointError
from shared.model.released_names import DECODER
from shared.model.room import need_memory

#: the argument of the decoder's forward that takes its cache: renamed in transformers 5.24, the old name goes in 5.40
CACHE = "cache" if "cache" in inspect.signature(Qwen3ForCausalLM.forward).parameters else "past_key_values"


def load_qwen3(checkpoint: Checkpoint, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Qwen3ForCausalLM:
    """The decoder in evaluation mode.

    Raises CheckpointError when tensors are missing or too many, RoomError where a CPU's memory is too small.
    """
    need_room(checkpoint, device, dtype)
    config = Qwen3Config(**checkpoint.config.text)
    with torch.device("meta"):  # a skeleton: the checkpoint's tensors become its parameters
        model = Qwen3ForCausalLM(config)
    # Not of the checkpoint, so still a skeleton: computed from the configuration.
    model.model.rotary_emb = Qwen3RotaryEmbedding(config)
    tensors = {name: tensor.to(device, dtype) for name, tensor in checkpoint.decoder_tensors().items()}
    if config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    try:
        model.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"the decoder in {checkpoint.path} does not fit its configuration: {error}") from error
    model.tie_weights()
    loaded: Qwen3ForCausalLM = model.to(device).eval()  # type: ignore[arg-type]
    return loaded


def need_room(checkpoint: Checkpoint, device: str, dtype: torch.dtype) -> None:
    """Raises RoomError if the decoder does not fit beside what else is in memory; an accelerator says so itself."""
    if torch.device(device).type == "cpu":
        need_memory(checkpoint.numbers(DECODER) * dtype.itemsize, f"the decoder in {str(dtype).removeprefix('torch.')}")


def embedder(model: Qwen3ForCausalLM) -> Embed:
    """The decoder's own token embedding, for prompts."""
    table: Any = model.get_input_embeddings()

    def embed(ids: Sequence[int]) -> NDArray[np.float32]:
        with torch.inference_mode():
            rows = table(torch.tensor(ids, device=table.weight.device))
        found: NDArray[np.float32] = rows.float().cpu().numpy().copy()  # the caller writes into it
        return found

    return embed
