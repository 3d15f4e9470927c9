"""STEP3-VL's released tensor names: those that a checkpoint must have, and the mapping to and from the modules' names.

Promises that names and shapes follow from the configuration alone. The decoder's names are transformers' own. The
tower's are those of `PerceptionEncoder`, except that queries, keys and values are released as one layer. Leaves reading
tensors to `checkpoint`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tofc.errors import UsageError
from tofc.model.config import SplitConfig

if TYPE_CHECKING:
    from torch import Tensor

VISION = "vision_model."
PROJECTOR = "vit_large_projector."
#: prefixes of the decoder's names, which are exactly those of `Qwen3ForCausalLM`
DECODER = ("model.", "lm_head.")

Shapes = dict[str, tuple[int, ...]]


def canonical_name(stored: str) -> str:
    """Return the released name of a stored tensor: without the `model.` that re-saving puts before vision names."""
    plain = stored.removeprefix("model.")
    return plain if plain.startswith((VISION, PROJECTOR)) else stored


def vision_shapes(config: SplitConfig) -> Shapes:
    """Return name and shape of every tensor of the tower, including the convolutions behind it."""
    v = config.vision
    width, patch = int(v["hidden_size"]), config.patch
    inner = int(width * v["mlp_ratio"])
    found: Shapes = {
        "conv1.weight": (width, int(v["num_channels"]), patch, patch),
        "positional_embedding": ((int(v["image_size"]) // patch) ** 2, width),
        "ln_pre.weight": (width,),
        "ln_pre.bias": (width,),
        "vit_downsampler1.weight": (2 * width, width, 3, 3),
        "vit_downsampler1.bias": (2 * width,),
        "vit_downsampler2.weight": (4 * width, 2 * width, 3, 3),
        "vit_downsampler2.bias": (4 * width,),
    }
    block: Shapes = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (inner, width),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (width, inner),
        "mlp.c_proj.bias": (width,),
    }
    for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias", "ls_1.gamma", "ls_2.gamma"):
        block[name] = (width,)
    for layer in range(v["num_hidden_layers"]):
        found |= {f"transformer.resblocks.{layer}.{name}": shape for name, shape in block.items()}
    return {VISION + name: shape for name, shape in found.items()}


def projector_shapes(config: SplitConfig) -> Shapes:
    """Return name and shape of the projector's tensors."""
    found: Shapes = {PROJECTOR + "weight": (config.hidden, config.feature_dim)}
    if config.projector_bias:
        found[PROJECTOR + "bias"] = (config.hidden,)
    return found


def decoder_shapes(config: SplitConfig) -> Shapes:
    """Return name and shape of every tensor of the Qwen3 decoder, without `lm_head` if it is tied to the embedding."""
    t = config.text
    hidden, vocabulary, inner = config.hidden, int(t["vocab_size"]), int(t["intermediate_size"])
    heads, groups = int(t["num_attention_heads"]), int(t["num_key_value_heads"])
    head = int(t.get("head_dim") or 128)  # Qwen3Config's default, whatever the width
    block: Shapes = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (heads * head, hidden),
        "self_attn.k_proj.weight": (groups * head, hidden),
        "self_attn.v_proj.weight": (groups * head, hidden),
        "self_attn.o_proj.weight": (hidden, heads * head),
        "self_attn.q_norm.weight": (head,),
        "self_attn.k_norm.weight": (head,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if t.get("attention_bias"):
        rows = {"q": heads * head, "k": groups * head, "v": groups * head, "o": hidden}
        block |= {f"self_attn.{name}_proj.bias": (size,) for name, size in rows.items()}
    found: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(t["num_hidden_layers"]):
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    if not config.tied:
        found["lm_head.weight"] = (vocabulary, hidden)
    return found


def from_released(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tower's tensors, given without `vision_model.`, to those of `PerceptionEncoder`, without copies."""
    found: dict[str, Tensor] = {}
    for name, tensor in released.items():
        before, joined, kind = name.partition("in_proj_")
        if joined:
            found |= {f"{before}{qkv}_proj.{kind}": part for qkv, part in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            found[name] = tensor
    return found


def _joined(vision: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the three layers of queries, keys and values: the inverse of `from_released`."""
    import torch

    found = {name: tensor for name, tensor in vision.items() if not re.search(r"attn\.[qkv]_proj\.", name)}
    for name in vision:
        before, of_queries, kind = name.partition("q_proj.")
        if of_queries:
            parts = [vision[part] for qkv in "qkv" if (part := f"{before}{qkv}_proj.{kind}") in vision]
            found[f"{before}in_proj_{kind}"] = torch.cat(parts)
    return found


def to_released(
    config: SplitConfig,
    *,
    vision: dict[str, Tensor],
    projector: dict[str, Tensor],
    decoder: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Return all tensors of a trained model under their released names: the exact inverse of loading them.

    `vision` is the state dict of a `PerceptionEncoder`, `projector` that of an `nn.Linear` (`weight` and, if the
    configuration has one, `bias`), `decoder` that of a `Qwen3ForCausalLM`.

    Raises `UsageError`, which names the tensor, if one is missing, unknown or of another shape.
    """
    found = {VISION + name: tensor for name, tensor in _joined(vision).items()}
    found |= {PROJECTOR + name: tensor for name, tensor in projector.items()}
    found |= {name: tensor for name, tensor in decoder.items() if not (config.tied and name == "lm_head.weight")}
    expected = vision_shapes(config) | projector_shapes(config) | decoder_shapes(config)
    for name, shape in expected.items():
        if name not in found:
            raise UsageError(f"the trained model has no {name} {shape}, which the configuration asks for")
        if tuple(found[name].shape) != shape:
            raise UsageError(f"{name} must have shape {shape} by the configuration, got {tuple(found[name].shape)}")
    if extra := sorted(found.keys() - expected.keys()):
        raise UsageError(f"the trained model has {extra[0]}, which the configuration does not know")
    return {name: found[name].detach().contiguous() for name in sorted(found)}
