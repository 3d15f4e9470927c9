"""A token of one answer in fixed shapes, so that a GPU can replay it as one CUDA graph instead of 1 800 launches.

    prompt rows ─→ as `packed_decoder` computes them
    a token ─→ id, position, mask [1, capacity] ─ fill ─→ Qwen3, attention over all rows of the cache ─→ logits [V]
                                                          └ recorded once an answer, replayed for every token

Promises the attention of the rows that a cache counts: what comes after them is zeros, and hidden. Nothing here copies
between devices or waits within what is recorded. Answers take turns, because a graph has the addresses of one cache.
Leaves prompts to `packed_decoder`, and sampling to the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import Qwen3ForCausalLM

from edge_server.engine.kv_cache import KeyValueCache
from edge_server.engine.packed_decoder import PackedDecoder, Segment
from edge_server.engine.probe import SAME_FOR_EVERY_LENGTH
from tofc.errors import CheckpointError


class StaticDecoder(PackedDecoder):
    """Runs segments one after another: a prompt's rows as `PackedDecoder`, a token in fixed shapes."""

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        """See `PackedDecoder`. Raises CheckpointError too for rotary embeddings that depend on the length."""
        super().__init__(model, packed=False)
        kind = self._model.config.rope_parameters["rope_type"]
        if kind not in SAME_FOR_EVERY_LENGTH:
            raise CheckpointError(
                f"a token can only be computed in fixed shapes with rotary embeddings of the types "
                f"{', '.join(sorted(SAME_FOR_EVERY_LENGTH))}, got {kind!r}; leave out --cuda-graph for this model"
            )

    def _forward(self, segments: Sequence[Segment]) -> list[Tensor]:
        (segment,) = segments
        if not isinstance(segment.rows, int):
            return super()._forward(segments)
        cache = segment.cache
        cache.reserve(1)
        if cache.static is None:  # the first token, or the cache has moved
            cache.static = StaticStep(self._model, cache, self._groups)
        logits = cache.static.run(segment.rows, cache.length)
        cache.advance(1)
        return [logits]


class StaticStep:
    """Computes tokens of one answer, in the memory that its cache has now."""

    def __init__(self, model: Any, cache: KeyValueCache, groups: int) -> None:
        """Clear the rows that are not counted yet; the first `run` records."""
        self._model = model
        self._groups = groups
        self._own, self._before = cache.clear_uncounted()
        self._shared = cache.shared_rows()  # of each layer; empty: it shares none
        device = self._own.device
        rows = self._before + self._own.shape[3]
        self._every = torch.arange(rows, device=device)  # [capacity]
        self._token, self._position, self._place = (torch.zeros(1, dtype=torch.long, device=device) for _ in range(3))
        self._mask = torch.empty(0, device=device)
        self._replay: Callable[[], Tensor] | None = None

    def run(self, token: int, position: int) -> Tensor:
        """Return the logits float [V] after `token`, on the CPU; `position` rows come before it."""
        self._token.fill_(token)
        self._position.fill_(position)
        self._place.fill_(position - self._before)
        if self._replay is None:
            self._replay = record(self._compute, self._own.device)
        return self._replay().cpu()  # waits for a GPU

    def _compute(self) -> Tensor:
        """Compute the logits float [V] from what the tensors of this step hold."""
        self._mask = (self._every <= self._position)[None]  # [1, capacity]
        hidden = self._model.model(
            inputs_embeds=self._model.model.embed_tokens(self._token)[None],  # [1, 1, H]
            attention_mask=dict.fromkeys(self._model.config.layer_types),  # none is made: `attend` has its own
            position_ids=self._position[None],
            use_cache=False,
            packed=self,
        ).last_hidden_state[0]
        logits: Tensor = self._model.lm_head(hidden)[0].float()
        return logits

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Return the attention [1, 1, heads, D] of queries [1, heads, 1, D], keys and values [1, kv heads, 1, D]."""
        own = self._own[layer]  # [2, kv heads, capacity, D]
        own.index_copy_(2, self._place, torch.stack((key[0], value[0])))
        keys, values = torch.cat([self._shared[layer], own], dim=2) if self._shared else own
        asked = query.view(1, -1, self._groups, query.shape[3])
        seen = scaled_dot_product_attention(asked, keys[None], values[None], attn_mask=self._mask, scale=scaling)
        return seen.view(1, 1, query.shape[1], query.shape[3])


def record(compute: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """Return what computes the same again: on an NVIDIA or AMD GPU a graph's replay, elsewhere `compute` itself.

    A replay writes its result to the same memory each time.
    """
    if device.type != "cuda":
        return compute
    with torch.cuda.device(device):
        current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            compute()  # libraries allocate their workspaces in the first call, which a recording may not
            graph.capture_begin(capture_error_mode="thread_local")  # other threads may go on: the tower's
            try:
                result = compute()
            finally:
                graph.capture_end()
        current.wait_stream(stream)

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
