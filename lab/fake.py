"""A tiny random checkpoint with everything a real one has, for tests and trials in milliseconds.

Promises the released names, files and special tokens at a size of some hundred kilobytes. Its answers
mean nothing. The codec files are not its business: put a codec's beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, Step3p7VisionConfig, Step3p7VisionModel

from lab import checkpoint
from lab.nano.tokenizer import CHAT_TEMPLATE, SPECIAL
from shared.model.config import SplitConfig
from shared.model.released_names import to_released

SENTENCES = ("how many cats are there?", "what is in the picture?", "is the dog left of the tree?", "yes", "a cat")


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 300 entries with the special tokens and a Qwen-style chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    build: Any = PreTrainedTokenizerFast  # untyped
    words: PreTrainedTokenizerFast = build(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )
    return words


def config(words: PreTrainedTokenizerFast, *, tied: bool = False, image_size: int = 336) -> dict[str, Any]:
    """The ``config.json`` of a tower of 2 layers × 32 and a decoder of 2 layers × 32."""
    return {
        "architectures": ["StepVLForConditionalGeneration"],
        "model_type": "step_robotics",
        "vision_config": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 14,
            "image_size": image_size,
            "mlp_ratio": 4.0,
            "max_position_embeddings": (image_size // 14) ** 2,
            "layer_scale_init_value": 1.0,
        },
        "text_config": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 64,
            "vocab_size": len(words),
            "tie_word_embeddings": tied,
            "eos_token_id": words.convert_tokens_to_ids("<|im_end|>"),
        },
        "understand_projector_stride": 2,
        "projector_bias": False,
        "image_token_id": words.convert_tokens_to_ids("<im_patch>"),
        "global_size": image_size,
        "crop_size": 224,
        "max_side": 3024,
    }


def write(
    out: Path, *, seed: int = 0, tied: bool = False, image_size: int = 336, dtype: torch.dtype = torch.float32
) -> None:
    """A whole checkpoint in ``out``: configuration, weights drawn from ``seed``, tokenizer and chat template."""
    words = tokenizer()
    raw = config(words, tied=tied, image_size=image_size)
    parsed = SplitConfig.parse(raw)
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        vision = Step3p7VisionModel(Step3p7VisionConfig(**parsed.vision))
        decoder = Qwen3ForCausalLM(Qwen3Config(**parsed.text))
        for tensor in vision.parameters():  # nothing zero or one, so that a confusion of tensors shows
            torch.nn.init.normal_(tensor, std=0.2)
        projector = torch.randn(parsed.hidden, parsed.feature_dim) / parsed.feature_dim**0.5
    finally:
        torch.random.set_rng_state(state)
    tensors = to_released(
        parsed, vision=vision.state_dict(), projector={"weight": projector}, decoder=decoder.state_dict()
    )
    checkpoint.write(out, raw, tensors, dtype=dtype)
    words.save_pretrained(out)
