"""The tensor names that a checkpoint must have, as STEP3-VL's release, and all tensors of a trained model under them.

Promises that names and shapes follow from the configuration alone. The decoder's names are transformers' own, the
tower's are in its `TowerConfig`. Leaves reading tensors to `checkpoint`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tofc.errors import UsageError
from tofc.model.config import SplitConfig
from tofc.model.tower_config import Shapes

if TYPE_CHECKING:
    from torch import Tensor

VISION = "vision_model."
PROJECTOR = "vit_large_projector."
#: prefixes of the decoder's names, which are exactly those of `Qwen3ForCausalLM`
DECODER = ("model.", "lm_head.")


def canonical_name(stored: str) -> str:
    """Return the released name of a stored tensor: without the `model.` that re-saving puts before vision names."""
    plain = stored.removeprefix("model.")
    return plain if plain.startswith((VISION, PROJECTOR)) else stored


def vision_shapes(config: SplitConfig) -> Shapes:
    """Return name and shape of every tensor of the tower."""
    return {VISION + name: shape for name, shape in config.tower.shapes().items()}


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


def to_released(
    config: SplitConfig,
    *,
    vision: dict[str, Tensor],
    projector: dict[str, Tensor],
    decoder: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Return all tensors of a trained model under their released names: the exact inverse of loading them.

    `vision` is the state dict of the tower's network, `projector` that of an `nn.Linear` (`weight` and, if the
    configuration has one, `bias`), `decoder` that of a `Qwen3ForCausalLM`.

    Raises `UsageError`, which names the tensor, if one is missing, unknown or of another shape.
    """
    found = {VISION + name: tensor for name, tensor in config.tower.stored(vision).items()}
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
