"""The frozen decoder: many questions about a picture in one sequence, its answers, and their probabilities.

    head: template, features of all views │ question, template, answer │ question, template, answer │ …
    position       0 … P−1                │ P, P+1, …                  │ P, P+1, …

Promises that a question sees the picture and itself, as if it were asked alone, under the checkpoint's own
template. Leaves what the features are to the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_server.engine.qwen3 import load_qwen3
from lab.codec.places import Places, View, places_of
from lab.matching.lora import Adapters
from shared.model.checkpoint import Checkpoint
from shared.model.prompt import Layout, Turn, build, load_tokenizer

Answer = tuple[int, ...]
AT_ONCE = 16  # questions in a sequence, where their number is anybody's: logits are a vocabulary wide
T = TypeVar("T")


def portions(questions: Sequence[T]) -> list[Sequence[T]]:
    """As many questions in each as are put in one sequence."""
    return [questions[first : first + AT_ONCE] for first in range(0, len(questions), AT_ONCE)]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Features [T, D] of a picture's views in prompt order, and which cell of which grid each is."""

    features: NDArray[np.float32]
    sides: NDArray[np.int64]  # [T]
    cells: NDArray[np.int64]  # [T]
    layout: Layout

    def views(self) -> list[View]:
        """Grid side and cells of each view."""
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
    predicting: Tensor  # [B, T] bool: the next token is of an answer
    answers: Tensor  # [n]: those tokens
    owner: Tensor  # [n]: the number of the question


class Teacher:
    """A checkpoint's decoder and projector. ``grid`` is added to projected features, zeros for none: [G, H]."""

    def __init__(
        self, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, ends: Sequence[int]
    ) -> None:
        """Raises ``CheckpointError``, and ``RoomError`` where memory is too small for the decoder."""
        self.tokenizer = load_tokenizer(checkpoint)
        self.patch = checkpoint.config.image_token_id
        self.device, self.ends = device, frozenset(ends)
        self.model: Any = load_qwen3(checkpoint, device=str(device), dtype=dtype).requires_grad_(False)
        if checkpoint.config.hidden >= 2048:  # else a backward pass keeps every layer's products
            self.model.gradient_checkpointing_enable()
            self.model.train()  # there is no dropout, but checkpointing is only done in training
        self.adapters: Adapters | None = None
        tensors = checkpoint.projector_tensors()
        self.projector = tensors["vit_large_projector.weight"].to(device, torch.float32)
        self.bias = tensors.get("vit_large_projector.bias")
        config = checkpoint.config
        self.sides = sorted({config.grid(config.crop_size), config.grid(config.global_size)})
        self.first = {side: sum(s * s for s in self.sides if s < side) for side in self.sides}
        self.cells = sum(side * side for side in self.sides)
        self._head, self._rest = lru_cache(4096)(self._head_of), lru_cache(65536)(self._rest_of)

    def adapt(self, rank: int) -> None:
        """Give the decoder adapters that can be trained."""
        self.adapters = Adapters(self.model, rank)

    def plain(self) -> AbstractContextManager[None]:
        """Within it the decoder is as it came."""
        return nullcontext() if self.adapters is None else self.adapters.off()

    def _built(self, question: str, layout: Layout) -> tuple[list[int], int]:
        tokens = build(self.tokenizer, [Turn(role="user", text=question)], [layout])
        return tokens.ids, int(tokens.patches[-1]) + 1

    def _head_of(self, layout: Layout) -> tuple[int, ...]:
        ids, end = self._built("?", layout)
        return tuple(ids[:end])

    def _rest_of(self, question: str) -> tuple[int, ...]:
        ids, end = self._built(question, Layout(whole=1))
        return tuple(ids[end:])

    def pack(self, shown: Sequence[Shown], asked: Sequence[Sequence[tuple[str, Answer]]]) -> Packed:
        """Each picture with its questions and (beginnings of) answers."""
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
        """Logits float [n, V] of every answer's tokens, with ``features`` [T, D] and a grid table [G, H]."""
        embeds = self.model.get_input_embeddings()(packed.ids)
        projected = features @ self.projector.T + grid[packed.slots]
        if self.bias is not None:
            projected = projected + self.bias.to(projected)
        embeds = embeds.masked_scatter(packed.image[..., None], projected.to(embeds.dtype))
        mask = torch.zeros_like(packed.mask, dtype=embeds.dtype).masked_fill(
            ~packed.mask, torch.finfo(embeds.dtype).min
        )
        found = self.model.model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=packed.positions, use_cache=False
        )
        logits: Tensor = self.model.lm_head(found.last_hidden_state[packed.predicting]).float()
        return logits

    @torch.no_grad()
    def answer(self, one: Shown, questions: Sequence[str], most: int, grid: Tensor) -> list[Answer]:
        """The likeliest answers, stop token included, at most ``most`` tokens of each."""
        return [answer for some in portions(questions) for answer in self._answer(one, some, most, grid)]

    def _answer(self, one: Shown, questions: Sequence[str], most: int, grid: Tensor) -> list[Answer]:
        given: list[list[int]] = [[] for _ in questions]
        going = list(range(len(questions)))
        while going:
            # each with one token more, which is what is asked for
            packed = self.pack([one], [[(questions[i], (*given[i], 0)) for i in going]])
            last = torch.tensor([sum(len(given[j]) + 1 for j in going[: k + 1]) - 1 for k in range(len(going))])
            tokens = self.logits(packed, packed.features, grid)[last.to(self.device)].argmax(-1).tolist()
            for i, token in zip(going, tokens, strict=True):
                given[i].append(token)
            going = [i for i in going if given[i][-1] not in self.ends and len(given[i]) < most]
        return [tuple(one) for one in given]
