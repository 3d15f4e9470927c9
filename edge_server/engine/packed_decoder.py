"""One forward of transformers' Qwen3 for the rows of many requests: everything but attention is computed at once.

    segments: prompt rows | last tokens ─→ [1, M, H] ─ Qwen3 ─→ hidden [1, M, H] ─ last row of each ─→ logits [n, V]
                                              └ attention: each segment's rows with its own keys and values

Promises that what is computed for one request has the same shapes whoever else takes part, except for the number of
rows M of the matrix products. In float32 a row of such a product has the same bits for every M ≥ MIN_ROWS on the CPUs
that were tried; `probe` checks it, and without it each forward takes one segment. Within a prompt, attention is
computed in blocks of rows that begin at multiples of `block`, so that it does not matter where one step ends and the
next begins. Leaves to `schedule` which rows take part in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, Qwen3ForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from edge_server.engine.kv_cache import CacheShape, KeyValueCache
from tofc.errors import CheckpointError

NAME = "tofc_packed"  # of the attention function
MIN_ROWS = 16  # of a product: with fewer, MKL and oneDNN choose other kernels, which sum in another order
STEP_ROWS = 256  # prompt rows that one step may take: others wait for them
PACKED_BLOCK = 16  # rows of a prompt whose attention is computed together; the unit in which cached rows are shared


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """The rows that a step adds to one cache: embeddings of a prompt, or a token."""

    cache: KeyValueCache
    rows: Tensor | int  # [n, H] or a token's id

    @property
    def count(self) -> int:
        """How many rows."""
        return 1 if isinstance(self.rows, int) else len(self.rows)


@dataclass(kw_only=True, eq=False)
class _Piece:
    """Rows of one segment whose attention is computed in one call."""

    cache: KeyValueCache
    begin: int  # in the packed rows
    end: int
    length: int  # rows of the cache that the last of them sees
    mask: Tensor | None  # [groups × rows, length], added to the scores; None: each row sees all


class PackedStep:
    """Computes the attention of one packed forward, request by request."""

    def __init__(self, segments: Sequence[Segment], block: int, groups: int, shape: CacheShape) -> None:
        self._segments = segments
        self._pieces: list[_Piece] = []
        self.positions: list[int] = []
        for segment in segments:
            begin, start, end = len(self.positions), segment.cache.length, segment.cache.length + segment.count
            self.positions += range(start, end)
            while start < end:
                until = min(end, start - start % block + block)
                rows = until - start
                mask = None
                if rows > 1:
                    hidden = torch.full((rows, until), -torch.inf, dtype=shape.dtype, device=shape.device)
                    mask = hidden.triu(start + 1).repeat(groups, 1)
                self._pieces.append(_Piece(cache=segment.cache, begin=begin, end=begin + rows, length=until, mask=mask))
                begin, start = begin + rows, until

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Return the attention [1, M, heads, D] of queries [1, heads, M, D], keys and values [1, kv heads, M, D]."""
        heads, _, depth = query.shape[1:]
        groups = heads // key.shape[1]
        both = torch.stack((key[0], value[0]))  # [2, kv heads, M, D]
        begin = 0
        for segment in self._segments:
            segment.cache.write(layer, both[:, :, begin : begin + segment.count])
            begin += segment.count
        out = query.new_zeros(1, query.shape[2], heads, depth)  # rows of padding attend to nothing
        grouped = query.view(-1, groups, *query.shape[2:])  # [kv heads, groups, M, D]
        for piece in self._pieces:
            keys, values = piece.cache.read(layer, piece.length)
            rows = piece.end - piece.begin
            asked = grouped[:, :, piece.begin : piece.end].reshape(1, -1, groups * rows, depth)
            seen = scaled_dot_product_attention(
                asked, keys[None], values[None], attn_mask=piece.mask, scale=scaling
            )  # [1, kv heads, groups × rows, D]
            out[0, piece.begin : piece.end] = seen.view(heads, rows, depth).transpose(0, 1)
        return out


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    packed: PackedStep | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention as transformers asks for it; without a packed step, its own way."""
    if packed is None:
        own = cast(Callable[..., tuple[Tensor, Tensor | None]], ALL_ATTENTION_FUNCTIONS["sdpa"])
        return own(module, query, key, value, attention_mask, scaling=scaling, **others)
    return packed.attend(module.layer_idx, query, key, value, scaling), None


class PackedDecoder:
    """Runs the segments of a step: all in one forward (`packed`), or one after another."""

    def __init__(self, model: Qwen3ForCausalLM, *, packed: bool) -> None:
        """Take over `model`, which others may go on using. Raises CheckpointError for sliding windows."""
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        self._model: Any = model.eval()  # Any: transformers leaves its calls untyped
        self._model.set_attn_implementation(NAME)
        config: Any = model.config
        if set(config.layer_types) != {"full_attention"}:
            raise CheckpointError(
                "every layer of the decoder must attend to all earlier rows (full_attention), got layers of "
                f"{', '.join(sorted(set(config.layer_types)))}; use another engine for this model"
            )
        self.max_positions = int(config.max_position_embeddings)
        self.hidden = int(config.hidden_size)
        self.packed = packed
        self._min_rows = MIN_ROWS if packed else 1
        self.block = PACKED_BLOCK if packed else STEP_ROWS
        self.shape = CacheShape.of(config, model.dtype, model.device)
        self._groups = config.num_attention_heads // config.num_key_value_heads

    def run(self, segments: Sequence[Segment]) -> list[Tensor]:
        """Add the segments' rows to their caches, and return the logits [V] after the last row of each.

        After an exception no cache has changed.
        """
        with torch.inference_mode():
            if self.packed:
                return self._forward(segments)
            return [logits for segment in segments for logits in self._forward([segment])]

    def _forward(self, segments: Sequence[Segment]) -> list[Tensor]:
        step = PackedStep(segments, self.block, self._groups, self.shape)
        for segment in segments:
            segment.cache.reserve(segment.count)
        padding = max(0, self._min_rows - len(step.positions))
        positions = torch.tensor([step.positions + [0] * padding], device=self.shape.device)  # [1, M]
        hidden = self._model.model(
            inputs_embeds=self._embed(segments, padding)[None],
            attention_mask=dict.fromkeys(self._model.config.layer_types),  # none is made: `packed` has its own
            position_ids=positions,
            use_cache=False,
            packed=step,
        ).last_hidden_state[0]  # [M, H]
        ends = torch.tensor([segment.count for segment in segments]).cumsum(0) - 1
        last = torch.cat([ends, ends[-1:].expand(max(0, self._min_rows - len(ends)))])  # [max(n, MIN_ROWS)]
        logits = self._model.lm_head(hidden[last.to(hidden.device)])[: len(ends)].float().cpu()  # waits for a GPU
        for segment in segments:
            segment.cache.advance(segment.count)
        return list(logits)

    def _embed(self, segments: Sequence[Segment], padding: int) -> Tensor:
        """Return all rows [M, H]."""
        tokens = [segment.rows for segment in segments if isinstance(segment.rows, int)]
        embedded = iter(
            self._model.model.embed_tokens(torch.tensor(tokens, dtype=torch.long, device=self.shape.device))[:, None]
        )
        rows = [next(embedded) if isinstance(one.rows, int) else one.rows for one in segments]
        rows = [one.to(self.shape.device, self.shape.dtype) for one in rows]
        return torch.cat([*rows, rows[0].new_zeros(padding, rows[0].shape[1])])
