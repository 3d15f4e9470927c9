"""Everything behind the features while nano is trained and judged: projector, grid embedding, decoder.

Promises the same prompt and the same sums as the edge server, for whole batches of questions with
gradients. Leaves pictures and towers to :mod:`lab.nano.features`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lab.codec.source import Project, merged_by
from lab.nano.features import Cached
from lab.nano.packing import Asked, Batch, Look, Picture
from lab.world import questions
from shared.model.prompt import token_id

SIDES = (4, 6)  # grid sides of a crop and of the global view
CROP_CELLS = SIDES[0] ** 2  # which no whole view has
SLOT = {4: 0, 6: 16}  # where each side's slots begin in the grid embedding
SLOTS = 16 + 36
#: layer and head that are taught each kind of look: names in the first, where features still say where they are
LOOKING = {Look.NAME: (0, 2), Look.FIRST: (1, 0), Look.SECOND: (1, 2)}


class Answerer(nn.Module):
    """Projector, grid embedding and decoder: everything behind the features."""

    def __init__(self, width: int, config: Qwen3Config) -> None:
        super().__init__()
        self.projector = nn.Linear(width, config.hidden_size, bias=False)
        self.grid = nn.Embedding(SLOTS, config.hidden_size)
        self.decoder = Qwen3ForCausalLM(config)
        self.decoder.set_attn_implementation("eager")  # faster than sdpa in bf16 on CPUs

    @torch.no_grad()
    def start_from(self, features: Tensor, size: float = 0.7) -> None:
        """Begin at scales where the decoder hears both what a feature [T, D] says and where it is.

        A grid embedding grown from zero stays under one per cent of the projected features' length, and
        normalisation hides it. So it begins with smooth coordinates, ``size`` times as long as a feature,
        in the directions where features have the least power.
        """
        length = self.projector.out_features**0.5 / 4
        nn.init.normal_(self.projector.weight, std=length / (self.projector.weight.numel() ** 0.5 * features.std()))
        projected = self.projector(features)
        _, directions = torch.linalg.eigh(projected.T @ projected)  # ascending power
        for side in SIDES:
            row, column = torch.meshgrid(*[(torch.arange(side) + 0.5) / side] * 2, indexing="ij")
            waves = [torch.cos(torch.pi * k * axis) for axis in (column, row) for k in (1, 2, 3)]
            coordinates = torch.stack(waves, dim=-1).flatten(0, 1)  # [side², 6], length √3 on average
            unit = size * projected.norm(dim=-1).mean() / 3**0.5
            self.grid.weight[SLOT[side] : SLOT[side] + side * side] = unit * coordinates @ directions[:, :6].T

    def grid_embedding(self) -> dict[int, NDArray[np.float16]]:
        """As a codec stores it: [side², H] of each grid side."""
        weight = self.grid.weight.detach().numpy().astype(np.float16)
        return {side: weight[SLOT[side] : SLOT[side] + side * side] for side in SIDES}

    def embed(self, batch: Batch, features: Tensor | None = None) -> Tensor:
        """Prompt embeddings [B, T, H]; ``features`` [sum, D] replace the batch's own (the codec's training)."""
        embeds = self.decoder.get_input_embeddings()(batch.ids)
        projected = self.projector(batch.features if features is None else features) + self.grid(batch.slots)
        return cast(Tensor, embeds.masked_scatter(batch.image[..., None], projected.to(embeds.dtype)))

    def forward(self, batch: Batch, features: Tensor | None = None) -> Tensor:
        """Logits [answer tokens, vocabulary] at the positions that have targets."""
        return self._forward(batch, features)[0]

    def forward_looking(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """:meth:`forward`, and the share of its attention that each lookup gives to what it should [L] in (0, 1]."""
        logits, attentions = self._forward(batch, None, output_attentions=True)
        heads = torch.stack([attentions[layer][:, head] for layer, head in map(LOOKING.__getitem__, Look)])
        looks = heads[batch.lookups[:, 0], batch.lookups[:, 1], batch.lookups[:, 2]].float()  # [L, T]
        return logits, (looks * batch.looked_up).sum(-1)

    def _forward(self, batch: Batch, features: Tensor | None, **more: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        embeds = self.embed(batch, features)
        output = self.decoder.model(
            inputs_embeds=embeds,
            attention_mask=torch.zeros_like(batch.mask, dtype=embeds.dtype).masked_fill(~batch.mask, -torch.inf),
            position_ids=batch.positions,
            use_cache=False,
            **more,
        )
        logits = self.decoder.lm_head(output.last_hidden_state[batch.targets >= 0])
        return logits, output.attentions


def config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """Nano's Qwen3."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=768,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        attention_bias=False,
        bos_token_id=None,
        eos_token_id=token_id(tokenizer, "<|im_end|>"),
        pad_token_id=token_id(tokenizer, "<|endoftext|>"),
    )


#: one view's features [N, D] → what the decoder is given: features [n, D], cells [n], bytes they cost
Reduce = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.int64], float]]


def merging(n: int | None = None, share: float = 1.0, project: Project | None = None) -> Reduce:
    """Merge a view to at most ``n`` features, or to a share of its own; half-precision bytes are counted.

    Distances are those between features, or between what ``project`` makes of them.
    """

    def reduce(view: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
        keep = min(len(view), n or len(view), max(2, round(len(view) * share)))
        means, cells = merged_by(view, keep, project)
        return means, cells, 2 * means.size

    return reduce


def picture(cached: Cached, reduce: Reduce) -> Picture:
    """A cached picture with each view reduced."""
    features, slots, views, size = [], [], [], 0.0
    for side, view in zip(cached.sides, cached.views(), strict=True):
        kept, cells, cost = reduce(view)
        features.append(kept)
        slots.append(SLOT[side] + cells)
        views.append((side, cells))
        size += cost
    return Picture(
        features=np.concatenate(features),
        views=tuple(views),
        slots=np.concatenate(slots),
        rows=cached.rows,
        columns=cached.columns,
        size=size,
    )


def ask(rng: np.random.Generator, cached: Cached, n: int, weights: dict[str, float] | None = None) -> list[Asked]:
    """``n`` questions about a picture (fewer where it has fewer)."""
    if cached.scene is None:
        chosen = rng.permutation(len(cached.asked))[:n]
        return [Asked(family="easy", text=cached.asked[i][0], answer=cached.asked[i][1]) for i in chosen]
    drawn = questions.draw_many(rng, cached.scene, n, weights)
    return [Asked(family=q.family, text=q.text, answer=q.answer) for q in drawn]


def load(run: Path, width: int) -> tuple[Answerer, PreTrainedTokenizerFast]:
    """The trained answerer of a run and its tokenizer."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(run / "tokenizer")
    answerer = Answerer(width, config(tokenizer))
    answerer.load_state_dict(torch.load(run / "decoder.pt", weights_only=True))
    return answerer.eval(), tokenizer
