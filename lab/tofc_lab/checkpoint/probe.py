"""Computing a checkpoint's identity probe: what its decoder says after a few texts, in float32.

    texts ─ tokenizer ─ ids [T] ─ token embedding [T, H] ─ layer after layer, each loaded for itself ─ log probabilities

Promises that one layer of the decoder is in memory at a time, whatever the model's size. Leaves comparing to
`tofc.model.identity_probe`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from edge_server.token_embedding import TokenEmbedding
from tofc.model.checkpoint import Checkpoint
from tofc.model.identity_probe import FILE, LIKELIEST, IdentityProbe, ProbePrompt
from tofc.model.prompt import Turn, build, encode_text, load_tokenizer

#: continued as they are
TEXTS = (
    "How many cats are on the sign to the left of the",
    "The picture shows a red car, a blue",
    "1, 2, 3, 5, 8, 13,",
    "def area(width, height):\n    return",
    "La capitale de la France est",
    "yes no yes no no",
)
#: asked with the chat template
QUESTIONS = ("what number is on the sign?", "is there a dog?")
HEAD_ROWS = 16_384  # of the output layer at once


def compute_probe(checkpoint: Checkpoint, model_id: str) -> IdentityProbe:
    """Compute the probe of a whole checkpoint, or of its server half. Reads every weight of the decoder once."""
    tokenizer = load_tokenizer(checkpoint)
    asked = [list(build(tokenizer, [Turn(role="user", text=text)], []).ids) for text in QUESTIONS]
    prompts = [*(encode_text(tokenizer, text) for text in TEXTS), *asked]
    found = [
        ProbePrompt(ids=ids, likeliest=dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
        for ids, top in zip(prompts, _likeliest(checkpoint, prompts), strict=True)
    ]
    return IdentityProbe(model_id=model_id, prompts=found)


def probe_of(checkpoint: Checkpoint, model_id: str) -> IdentityProbe:
    """Return the probe that a checkpoint's folder has, if it is that of the model; else compute it."""
    if (checkpoint.path / FILE).exists() and (kept := IdentityProbe.read(checkpoint.path)).model_id == model_id:
        return kept
    return compute_probe(checkpoint, model_id)


def _likeliest(checkpoint: Checkpoint, prompts: Sequence[Sequence[int]]) -> list[Any]:
    """Return each prompt's likeliest next tokens: `values`, log probabilities, and `indices` [LIKELIEST]."""
    embed = TokenEmbedding(checkpoint)
    longest = max(map(len, prompts))
    rows = torch.zeros(len(prompts), longest, checkpoint.config.hidden)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for number, ids in enumerate(prompts):
        rows[number, : len(ids)] = torch.from_numpy(embed(ids))
        mask[number, : len(ids)] = 1
    tensors = checkpoint.decoder_tensors()  # mapped, not read
    with torch.inference_mode():
        hidden = _body(checkpoint, tensors)(inputs_embeds=rows, attention_mask=mask, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(prompts)), mask.sum(1) - 1]  # [prompts, H]
        head = tensors["model.embed_tokens.weight" if checkpoint.config.tied else "lm_head.weight"]
        logits = torch.cat([last @ part.float().T for part in head.split(HEAD_ROWS)], dim=1)  # [prompts, V]
        return [one.topk(LIKELIEST) for one in logits.log_softmax(-1)]


def _body(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> Any:
    """Return the decoder without its output layer; each of its parts has weights only while it computes."""
    config = Qwen3Config(**checkpoint.config.text)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config).model
    model.rotary_emb = Qwen3RotaryEmbedding(config)
    for name, module in [*((f"layers.{i}", layer) for i, layer in enumerate(model.layers)), ("norm", model.norm)]:
        prefix = f"model.{name}."
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        module.register_forward_pre_hook(_loading(own))
        module.register_forward_hook(_unloading)
    return model.eval()


def _loading(own: Mapping[str, Tensor]) -> Any:
    def load(module: torch.nn.Module, _: Any) -> None:
        module.load_state_dict({name: tensor.float() for name, tensor in own.items()}, assign=True)

    return load


def _unloading(module: torch.nn.Module, *_: Any) -> None:
    module.to("meta")
