"""Random checkpoints in the released format: tiny ones for tests, and one of the released size for measurements.

Promises the released names, files and special tokens, and at `RELEASED_SIZE` the released views; the same seed gives
the same weights. Answers are meaningless. Leaves out the codec: copy one into the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tofc.errors import UsageError
from tofc.model.checkpoint import Checkpoint
from tofc.model.config import SplitConfig
from tofc.model.efficientnet_lite_config import EfficientNetLite2Config
from tofc.model.prompt import THINKING_TOKENS
from tofc.model.released_names import decoder_shapes, projector_shapes, vision_shapes
from tofc.model.resources import require_disk
from tofc.model.tower_config import DEFAULT
from tofc_lab.checkpoint import shards
from tofc_lab.checkpoint.special_tokens import CHAT_TEMPLATE, SPECIAL
from tofc_lab.checkpoint.write import write_json

Shape = Literal["tiny", "full"]
SENTENCES = ("how many cats are there?", "what is in the picture?", "is the dog left of the tree?", "yes", "a cat")
RELEASED_SIZE = 728  # px of the global view
#: as in the released tokenizer; the last three are invented
RELEASED_IDS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<think>": 151667,
    "</think>": 151668,
    "<im_patch>": 151679,
    "<im_start>": 151680,
    "<patch_start>": 151689,
    "<im_end>": 151681,
    "<patch_end>": 151690,
    "<patch_newline>": 151691,
}


def tokenizer(shape: Shape = "tiny") -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of about 300 entries, with the special tokens and a Qwen-style chat template.

    `full` has the special tokens at the released ids; the other ids of Qwen3's vocabulary have no token.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[] if shape == "full" else list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    if shape == "full":
        learned = json.loads(backend.to_str())["model"]
        merges = [tuple(pair) for pair in learned["merges"]]
        backend.model = models.BPE(vocab=learned["vocab"] | RELEASED_IDS, merges=merges)
        backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    # As in the released tokenizer, these are added tokens but not special ones.
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in THINKING_TOKENS])
    build: Any = PreTrainedTokenizerFast  # untyped
    found: PreTrainedTokenizerFast = build(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )
    return found


def config(
    tokenizer: PreTrainedTokenizerFast,
    *,
    shape: Shape = "tiny",
    tied: bool = False,
    image_size: int = 336,
    tower: str = DEFAULT,
) -> dict[str, Any]:
    """Return a `config.json` of the released sizes, or of a tower and a decoder of 2 layers × 32 each.

    A tiny one may have another `tower`: EfficientNet-Lite2's trunk has its real size, what is behind it is tiny.
    """
    ends = {"eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"), "tie_word_embeddings": tied}
    whole = {
        "architectures": ["StepVLForConditionalGeneration"],
        "model_type": "step_robotics",
        "understand_projector_stride": 2,
        "projector_bias": False,
        "image_token_id": tokenizer.convert_tokens_to_ids("<im_patch>"),
    }
    if shape == "full":
        return whole | {
            "vision_config": {
                "width": 1536,
                "layers": 47,
                "heads": 16,
                "patch_size": 14,
                "image_size": RELEASED_SIZE,
                "mlp_ratio": 8960 / 1536,
                "ls_init_value": 0.1,
            },
            "text_config": {
                "hidden_size": 4096,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "intermediate_size": 12288,
                "vocab_size": 151936,
                "max_position_embeddings": 40960,
                "rope_theta": 1000000.0,
                "rms_norm_eps": 1e-6,
                **ends,
            },
        }
    vision: dict[str, Any]
    if tower == EfficientNetLite2Config.MODEL_TYPE:
        widths = {"detail_width": 16, "adapter_width": 64, "concept_width": 48, "code_width": 32, "output_width": 128}
        vision = {"model_type": tower, **widths}
    else:
        vision = {
            "width": 32,
            "layers": 2,
            "heads": 2,
            "patch_size": 14,
            "image_size": image_size,
            "mlp_ratio": 4.0,
            "max_position_embeddings": (image_size // 14) ** 2,
            "ls_init_value": 1.0,
        }
    return whole | {
        "vision_config": vision,
        "text_config": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,  # the smallest that vLLM accepts on a CPU
            "intermediate_size": 64,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 40960,
            **ends,
        },
        "global_size": image_size,
        "crop_size": 504 if image_size == RELEASED_SIZE else 224,
        "max_side": 3024,
    }


def write(
    out: Path,
    *,
    shape: Shape = "tiny",
    seed: int = 0,
    tied: bool = False,
    image_size: int = 336,
    tower: str = DEFAULT,
    dtype: torch.dtype = torch.float32,
    shard_bytes: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a whole checkpoint to `out`: configuration, random weights from `seed`, tokenizer and chat template.

    Weights are written to files of up to `shard_bytes`, one after another; existing files are kept. `progress` takes
    the bytes written and the bytes in all. Raises `ResourceError`, and `UsageError` where `out` has weights of another
    checkpoint, before anything is written.
    """
    built = tokenizer(shape)
    raw = config(built, shape=shape, tied=tied, image_size=image_size, tower=tower)
    parsed = SplitConfig.parse(raw)
    shapes = vision_shapes(parsed) | projector_shapes(parsed) | decoder_shapes(parsed)
    sizes = {name: prod(one) * dtype.itemsize for name, one in shapes.items()}
    files = shards.plan(sizes, shard_bytes)
    found = sorted(file.name for file in out.glob("model*.safetensors"))
    same = (out / "config.json").exists() and json.loads((out / "config.json").read_bytes()) == raw
    index = shards.index(files, sizes)
    index["metadata"]["seed"] = seed
    if len(files) > 1:
        same = same and (out / shards.INDEX).exists() and json.loads((out / shards.INDEX).read_bytes()) == index
    if found and not (same and set(found) <= set(files)):
        raise UsageError(f"{out} holds another checkpoint ({found[0]}, …); name a new folder")
    require_disk(sum(sizes.values()), out, "the checkpoint", over=out.glob("model*.safetensors*"))
    out.mkdir(parents=True, exist_ok=True)
    built.save_pretrained(out)
    write_json(out / "config.json", raw)
    ends = [built.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")]
    write_json(out / "generation_config.json", {"eos_token_id": ends})
    if len(files) > 1:
        write_json(out / shards.INDEX, index)
    done = 0
    for file, names in files.items():
        if len(files) == 1 or not (out / file).exists():
            partial = out / f"{file}.partial"
            scale = float(raw["vision_config"].get("ls_init_value", 1.0))
            save_file(
                {name: _draw(name, shapes[name], seed, scale, dtype) for name in names}, partial, {"format": "pt"}
            )
            partial.chmod(0o644)  # safetensors makes it readable for its owner alone
            partial.replace(out / file)
        done += sum(sizes[name] for name in names)
        progress(done, sum(sizes.values()))
    Checkpoint.open(out)


def _draw(name: str, shape: tuple[int, ...], seed: int, layer_scale: float, dtype: torch.dtype) -> Tensor:
    """Return random values that keep activations at their size; no tensor is constant, so a swap of two is noticed."""
    number = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little") >> 1
    values = torch.empty(shape, dtype=dtype).normal_(generator=torch.Generator().manual_seed(number))
    if name.endswith("gamma"):
        return values.mul_(0.3 * layer_scale).add_(layer_scale)
    if len(shape) == 1:  # of a norm, or a bias
        return values.mul_(0.1).add_(1.0 if name.endswith("weight") else 0.0)
    if name.endswith(("embed_tokens.weight", "positional_embedding")):
        return values
    gain = 2**0.5 if ".trunk." in name else 1.0  # half of what a ReLU gets is lost
    return values.mul_(gain * prod(shape[1:]) ** -0.5)
