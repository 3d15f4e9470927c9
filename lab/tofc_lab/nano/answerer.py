"""The part of nano that turns features into answers, for training and evaluation: projector, grid embedding, decoder.

Promises the same prompt and the same arithmetic as the edge server, for whole batches of questions with gradients.
Leaves pictures and towers to `tofc_lab.nano.features`.
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

from tofc.model.prompt import token_id
from tofc_lab.codec.source import Project, merged_by
from tofc_lab.nano.costs import Cost, packet_bytes
from tofc_lab.nano.features import CachedPicture
from tofc_lab.nano.packing import AttentionLabel, Batch, QuestionAnswer, VisualInput
from tofc_lab.resume import fingerprint
from tofc_lab.world import questions

SIDES = (4, 6)  # grid sides of a crop and of the global view
CROP_CELLS = SIDES[0] ** 2  # a view with this number of cells is a crop
SLOT = {4: 0, 6: 16}  # grid side → its first row in the grid embedding
SLOTS = 16 + 36
#: the layer and the heads whose attention is trained on each kind of label. NAME is in the first layer, where features
#: still contain their positions. SHOWN has all heads of a layer: together they carry all that a feature says.
SUPERVISED_HEADS = {
    AttentionLabel.NAME: (0, [2]),
    AttentionLabel.FIRST: (1, [0]),
    AttentionLabel.SECOND: (1, [2]),
    AttentionLabel.SHOWN: (2, [0, 1, 2, 3]),
}


class Answerer(nn.Module):
    """Projector, grid embedding and decoder as one module."""

    def __init__(self, width: int, config: Qwen3Config) -> None:
        super().__init__()
        self.projector = nn.Linear(width, config.hidden_size, bias=False)
        self.grid = nn.Embedding(SLOTS, config.hidden_size)
        self.decoder = Qwen3ForCausalLM(config)
        self.decoder.set_attn_implementation("eager")  # faster than sdpa in bf16 on CPUs

    @torch.no_grad()
    def start_from(self, features: Tensor, projector: Tensor | None = None, size: float = 0.7) -> None:
        """Initialise projector and grid embedding so that the decoder can read both content and place of features.

        The projector is random, or has the directions of `projector` [H, D].

        A grid embedding that starts from zero stays under one per cent of the length of projected features [T, D], and
        normalisation hides it. So it starts with smooth coordinates, `size` times as long as a feature, in the
        directions where features have the least power.
        """
        length = self.projector.out_features**0.5 / 4
        if projector is None:
            std = length / (self.projector.weight.numel() ** 0.5 * features.std())
            nn.init.normal_(self.projector.weight, std=std)
        else:
            self.projector.weight.copy_(projector * length / (features @ projector.T).norm(dim=1).mean())
        projected = self.projector(features)
        _, directions = torch.linalg.eigh(projected.T @ projected)  # ascending power
        for side in SIDES:
            row, column = torch.meshgrid(*[(torch.arange(side) + 0.5) / side] * 2, indexing="ij")
            waves = [torch.cos(torch.pi * k * axis) for axis in (column, row) for k in (1, 2, 3)]
            coordinates = torch.stack(waves, dim=-1).flatten(0, 1)  # [side², 6], length √3 on average
            unit = size * projected.norm(dim=-1).mean() / 3**0.5
            self.grid.weight[SLOT[side] : SLOT[side] + side * side] = unit * coordinates @ directions[:, :6].T

    def grid_embedding(self) -> dict[int, NDArray[np.float16]]:
        """Return the table as a codec stores it: [side², H] by grid side."""
        weight = self.grid.weight.detach().numpy().astype(np.float16)
        return {side: weight[SLOT[side] : SLOT[side] + side * side] for side in SIDES}

    def embed(self, batch: Batch, features: Tensor | None = None) -> Tensor:
        """Return prompt embeddings [B, T, H]; `features` [sum, D] replace the batch's own (to train a codec)."""
        embeds = self.decoder.get_input_embeddings()(batch.ids)
        projected = self.projector(batch.features if features is None else features) + self.grid(batch.slots)
        return cast(Tensor, embeds.masked_scatter(batch.image[..., None], projected.to(embeds.dtype)))

    def forward(self, batch: Batch, features: Tensor | None = None) -> Tensor:
        """Return the logits [answer tokens, vocabulary] at the positions that have targets."""
        return self._forward(batch, features)[0]

    def forward_with_attention(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits, and for each label the share [L] of attention that is on the right tokens, in (0, 1]."""
        logits, attentions = self._forward(batch, None, output_attentions=True)
        heads = torch.stack(
            [attentions[layer][:, heads].mean(1) for layer, heads in map(SUPERVISED_HEADS.__getitem__, AttentionLabel)]
        )
        attention = heads[batch.supervised[:, 0], batch.supervised[:, 1], batch.supervised[:, 2]].float()  # [L, T]
        return logits, (attention * batch.attended).sum(-1)

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


def inputs_of(run: Path) -> dict[str, str]:
    """Return what identifies the tower and the decoder of a run: what its codecs depend on."""
    return {name: fingerprint(run / name) for name in ("tower.pt", "decoder.pt")}


def config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """Return the configuration of nano's decoder."""
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


#: features [N, D] of a view → (features [n, D] for the decoder, their cells [n], what they cost)
Reduce = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.int64], Cost]]


def merging(n: int | None = None, share: float = 1.0, project: Project | None = None) -> Reduce:
    """Return a function that merges a view to at most `n` features or to a share of them, in half precision.

    Distances are those between features, or between their projections by `project`.
    """

    def reduce(view: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
        keep = min(len(view), n or len(view), max(2, round(len(view) * share)))
        means, cells = merged_by(view, keep, project)
        return means, cells, 2 * means.size

    return reduce


def visual_input(cached: CachedPicture, reduce: Reduce) -> VisualInput:
    """Return the decoder's input for a picture, each view reduced."""
    features, slots, views, costs = [], [], [], []
    for side, view in zip(cached.sides, cached.views(), strict=True):
        kept, cells, cost = reduce(view)
        features.append(kept)
        slots.append(SLOT[side] + cells)
        views.append((side, cells))
        costs.append(cost)
    return VisualInput(
        features=np.concatenate(features),
        views=tuple(views),
        slots=np.concatenate(slots),
        rows=cached.rows,
        columns=cached.columns,
        size=packet_bytes(costs),
    )


def ask(
    rng: np.random.Generator, cached: CachedPicture, n: int, weights: dict[str, float] | None = None
) -> list[QuestionAnswer]:
    """Return `n` random questions about a picture, or fewer if there are no more."""
    if cached.scene is None:
        chosen = rng.permutation(len(cached.asked))[:n]
        return [QuestionAnswer(family="easy", text=cached.asked[i][0], answer=cached.asked[i][1]) for i in chosen]
    drawn = questions.draw_many(rng, cached.scene, n, weights)
    return [QuestionAnswer(family=q.family, text=q.text, answer=q.answer) for q in drawn]


def load(run: Path, width: int) -> tuple[Answerer, PreTrainedTokenizerFast]:
    """Load the trained answerer of a run, and its tokenizer."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(run / "tokenizer")
    answerer = Answerer(width, config(tokenizer))
    answerer.load_state_dict(torch.load(run / "decoder.pt", weights_only=True))
    return answerer.eval(), tokenizer
