"""The decoder of a checkpoint as transformers' Qwen3.

Promises to read only the decoder's tensors, each once, without a second copy at full size. Leaves running it to
`engine.transformers`.
"""

from __future__ import annotations

import inspect

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from tofc.errors import CheckpointError
from tofc.model.checkpoint import Checkpoint
from tofc.model.released_names import DECODER
from tofc.model.resources import require_memory

#: name of the cache argument of the decoder's `forward`: transformers renamed it in 5.24 and drops the old name in 5.40
CACHE = "cache" if "cache" in inspect.signature(Qwen3ForCausalLM.forward).parameters else "past_key_values"


def load_qwen3(checkpoint: Checkpoint, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Qwen3ForCausalLM:
    """Load the decoder in evaluation mode.

    Raises CheckpointError if tensors are missing or superfluous, ResourceError if memory is too small.
    """
    require_decoder_memory(checkpoint, device, dtype)
    config = Qwen3Config(**checkpoint.config.text)
    with torch.device("meta"):  # no memory yet: the checkpoint's tensors become its parameters
        model = Qwen3ForCausalLM(config)
    # Not in the checkpoint, so still without values: computed from the configuration.
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


def require_decoder_memory(checkpoint: Checkpoint, device: str, dtype: torch.dtype) -> None:
    """Check that the decoder fits into the free memory of a device. Raises ResourceError."""
    size = checkpoint.parameter_count(DECODER) * dtype.itemsize
    require_memory(size, f"the decoder in {str(dtype).removeprefix('torch.')}", device)
