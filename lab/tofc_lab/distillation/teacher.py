"""The frozen decoder: its answers and their probabilities, with many questions about a picture in one sequence.

    head: template, features of all views │ question, template, answer │ question, template, answer │ …
    position       0 … P−1                │ P, P+1, …                  │ P, P+1, …

Promises that a question attends to the picture and to itself only, as if it were asked alone, in the checkpoint's own
chat template, and that answers are read with a key-value cache. Leaves where features come from to the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerFast

from edge_server.engine.qwen3 import CACHE, load_qwen3
from tofc.model.checkpoint import Checkpoint
from tofc.model.prompt import PictureLayout, Turn, build, load_tokenizer
from tofc_lab.codec.places import Places, View, places_of
from tofc_lab.distillation.lora import Adapters

Answer = tuple[int, ...]
AT_ONCE = 16  # questions in a sequence, at most: each answer token that is judged has a logit for every token
T = TypeVar("T")


def portions(questions: Sequence[T]) -> list[Sequence[T]]:
    """Split questions into groups of at most `AT_ONCE`, for one sequence each."""
    return [questions[first : first + AT_ONCE] for first in range(0, len(questions), AT_ONCE)]


@dataclass(frozen=True, kw_only=True)
class PictureInput:
    """Features [T, D] of a picture's views in prompt order, and the grid and cell of each."""

    features: NDArray[np.float32]
    sides: NDArray[np.int64]  # [T]
    cells: NDArray[np.int64]  # [T]
    layout: PictureLayout

    def views(self) -> list[View]:
        """Return grid side and cells of each view."""
        ends = np.cumsum([*self.layout.crops, self.layout.whole])
        parts = zip(np.split(self.sides, ends[:-1]), np.split(self.cells, ends[:-1]), strict=True)
        return [(int(sides[0]), cells) for sides, cells in parts]


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """Sequences of pictures with their questions and answers, on the decoder's device."""

    ids: Tensor  # [B, T]
    mask: Tensor  # [B, 1, T, T] bool: may attend
    positions: Tensor  # [B, T]
    image: Tensor  # [B, T] bool
    features: Tensor  # [sum of image, D]
    slots: Tensor  # [sum of image], rows of the grid table
    places: Places  # of the features, for the codec's context model
    predicting: Tensor  # [B, T] bool: the next token belongs to an answer
    answers: Tensor  # [n]: those tokens
    owner: Tensor  # [n]: the number of the question


class Teacher:
    """A checkpoint's decoder and projector; `open` makes one.

    A grid table [G, H] is added to projected features; `no_grid` is the one of zeros.
    """

    def __init__(
        self,
        *,
        tokenizer: PreTrainedTokenizerFast,
        model: Any,
        projector: Tensor,
        bias: Tensor | None,
        sides: Sequence[int],
        patch: int,
        ends: frozenset[int],
        device: torch.device,
    ) -> None:
        """Take the parts; `patch` is the id of <im_patch>, `sides` the grid sides in ascending order."""
        self.tokenizer, self.model, self.projector, self.bias = tokenizer, model, projector, bias
        self.sides, self.patch, self.ends, self.device = sides, patch, ends, device
        self.adapters: Adapters | None = None
        self.first = {side: sum(s * s for s in sides if s < side) for side in sides}
        self.cells = sum(side * side for side in sides)
        self._head, self._rest = lru_cache(4096)(self._head_of), lru_cache(65536)(self._rest_of)

    @classmethod
    def open(cls, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, ends: Sequence[int]) -> Self:
        """Load decoder and projector. Raises `CheckpointError`, and `ResourceError` if memory is too small."""
        config = checkpoint.config
        tokenizer = load_tokenizer(checkpoint)
        model = load_qwen3(checkpoint, device=str(device), dtype=dtype).requires_grad_(False)
        if config.hidden >= 2048:  # otherwise a backward pass keeps the products of every layer
            # transformers 5.23 renamed it
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
            model.train()  # there is no dropout, but gradient checkpointing works in training mode only
        tensors = checkpoint.projector_tensors()
        return cls(
            tokenizer=tokenizer,
            model=model,
            projector=tensors["vit_large_projector.weight"].to(device, torch.float32),
            bias=tensors.get("vit_large_projector.bias"),
            sides=sorted({config.grid(config.crop_size), config.grid(config.global_size)}),
            patch=config.image_token_id,
            ends=frozenset(ends),
            device=device,
        )

    def no_grid(self) -> Tensor:
        """Return the grid table [G, H] that adds nothing."""
        return torch.zeros(self.cells, self.projector.shape[0], device=self.device)

    def adapt(self, rank: int) -> None:
        """Add trainable adapters to the decoder."""
        self.adapters = Adapters.inject(self.model, rank)

    def plain(self) -> AbstractContextManager[None]:
        """Disable the adapters, if there are any, within a `with` block."""
        return nullcontext() if self.adapters is None else self.adapters.off()

    def _built(self, question: str, layout: PictureLayout) -> tuple[list[int], int]:
        """Return the prompt's tokens, and the number of those up to the picture's last feature."""
        tokens = build(self.tokenizer, [Turn(role="user", text=question)], [layout])
        return tokens.ids, int(tokens.feature_positions[-1]) + 1

    def _head_of(self, layout: PictureLayout) -> tuple[int, ...]:
        """Return the tokens up to the picture's last feature."""
        ids, end = self._built("?", layout)
        return tuple(ids[:end])

    def _rest_of(self, question: str) -> tuple[int, ...]:
        """Return the tokens after the picture's last feature."""
        ids, end = self._built(question, PictureLayout(whole=1))
        return tuple(ids[end:])

    def pack(self, shown: Sequence[PictureInput], asked: Sequence[Sequence[tuple[str, Answer]]]) -> Packed:
        """Build one sequence for each picture, with its questions and their answers (whole or cut)."""
        rows = []
        number = 0
        answers: list[int] = []
        owner: list[int] = []
        for one, questions in zip(shown, asked, strict=True):
            ids = list(self._head(one.layout))
            start = len(ids)
            segments, places, predicting = [0] * start, list(range(start)), [False] * start
            for index, (question, answer) in enumerate(questions):
                rest = self._rest(question)
                block = [*rest, *answer]
                ids += block
                segments += [index + 1] * len(block)
                places += range(start, start + len(block))
                predicting += [False] * (len(rest) - 1) + [True] * len(answer) + [False]
                answers += answer
                owner += [number] * len(answer)
                number += 1
            rows.append((ids, segments, places, predicting))
        size = max(len(ids) for ids, *_ in rows)

        def padded(column: int, fill: int) -> Tensor:
            return torch.tensor([list(row[column]) + [fill] * (size - len(row[column])) for row in rows])

        segment = padded(1, -1)
        same = (segment[:, :, None] == segment[:, None, :]) | (segment[:, None, :] == 0)
        mask = same & torch.ones(size, size, dtype=torch.bool).tril()
        heads = torch.tensor([len(self._head(one.layout)) for one in shown])
        tokens = padded(0, 0)
        image = (tokens == self.patch) & (torch.arange(size) < heads[:, None])
        slots = np.concatenate(
            [np.array([self.first[side] for side in one.sides.tolist()]) + one.cells for one in shown]
        )
        tensors: dict[str, Tensor] = {
            "ids": tokens,
            "mask": mask[:, None],
            "positions": padded(2, 0),
            "image": image,
            "features": torch.from_numpy(np.concatenate([one.features for one in shown])),
            "slots": torch.from_numpy(slots.astype(np.int64)),
            "predicting": padded(3, 0).bool(),
            "answers": torch.tensor(answers, dtype=torch.long),
            "owner": torch.tensor(owner, dtype=torch.long),
        }
        where = places_of([view for one in shown for view in one.views()]).to(self.device)
        return Packed(**{name: tensor.to(self.device) for name, tensor in tensors.items()}, places=where)

    def logits(self, packed: Packed, features: Tensor, grid: Tensor) -> Tensor:
        """Return the logits float [n, V] of all answer tokens, with `features` [T, D] and a grid table [G, H]."""
        embeds = self._embedded(packed, features, grid)
        mask = _additive(packed.mask, embeds.dtype)
        found = self.model.model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=packed.positions, use_cache=False
        )
        logits: Tensor = self.model.lm_head(found.last_hidden_state[packed.predicting]).float()
        return logits

    def _embedded(self, packed: Packed, features: Tensor, grid: Tensor) -> Tensor:
        """Return the decoder's input [B, T, H]."""
        embeds: Tensor = self.model.get_input_embeddings()(packed.ids)
        projected = features @ self.projector.T + grid[packed.slots]
        if self.bias is not None:
            projected = projected + self.bias.to(projected)
        return embeds.masked_scatter(packed.image[..., None], projected.to(embeds.dtype))

    @torch.no_grad()
    def answer(self, one: PictureInput, questions: Sequence[str], most: int, grid: Tensor) -> list[Answer]:
        """Return the greedy answers, with their stop tokens, up to `most` tokens each."""
        training = self.model.training
        self.model.eval()  # with gradient checkpointing, transformers drops the cache in training mode
        try:
            return [answer for some in portions(questions) for answer in self._answer(one, some, most, grid)]
        finally:
            self.model.train(training)

    def _answer(self, one: PictureInput, questions: Sequence[str], most: int, grid: Tensor) -> list[Answer]:
        """Read picture and questions once, then one token of every unfinished answer in each step."""
        packed = self.pack([one], [[(question, ()) for question in questions]])
        embeds = self._embedded(packed, packed.features, grid)
        lengths = [len(self._rest(question)) for question in questions]
        start = len(self._head(one.layout))
        ends = torch.tensor(lengths).cumsum(0) + (start - 1)  # of the questions, the last row of each
        owner = torch.tensor([-1] * start + [i for i, length in enumerate(lengths) for _ in range(length)])
        owner = owner.to(self.device)  # of every cached row: its question, −1 for the picture
        given: list[list[int]] = [[] for _ in questions]
        unfinished = list(range(len(questions)))
        cache = DynamicCache(config=self.model.config)
        hidden = self._read(cache, embeds, packed.mask, packed.positions)[0, ends.to(self.device)]  # [Q, H]
        while True:
            tokens = self.model.lm_head(hidden).float().argmax(-1).tolist()
            for i, token in zip(unfinished, tokens, strict=True):
                given[i].append(token)
            unfinished = [i for i in unfinished if given[i][-1] not in self.ends and len(given[i]) < most]
            if not unfinished:
                return [tuple(one) for one in given]
            columns = [
                unfinished,
                [given[i][-1] for i in unfinished],
                [start + lengths[i] + len(given[i]) - 1 for i in unfinished],
            ]
            number, ids, positions = torch.tensor(columns).to(self.device)  # [U] each, in one copy
            owner = torch.cat([owner, number])
            mask = (owner == -1) | (owner == number[:, None])  # [U, rows]
            embeds = self.model.get_input_embeddings()(ids[None])
            hidden = self._read(cache, embeds, mask[None, None], positions[None])[0]

    def _read(self, cache: DynamicCache, embeds: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Read rows [1, T, H] that attend to those of `mask` [1, 1, T, all]; return the last layer's [1, T, H]."""
        found = self.model.model(
            inputs_embeds=embeds,
            attention_mask=_additive(mask, embeds.dtype),
            position_ids=positions,
            use_cache=True,
            **{CACHE: cache},
        )
        hidden: Tensor = found.last_hidden_state
        return hidden


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention scores, from a mask of what may be attended to."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
