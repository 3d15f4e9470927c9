"""Many questions about one picture as one training sequence.

Promises that a packed question attends to the same tokens as in a prompt of its own: to the picture and itself
(`independent`), or to the picture and all earlier turns (a conversation). Leaves the features to `answerer`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tofc.model.prompt import token_id
from tofc_lab.codec.places import Places, View, places_of


class AttentionLabel(IntEnum):
    """The kinds of attention that are trained: of a name on its object, of an answer on each of two names or on what
    shows it.
    """

    NAME = 0
    FIRST = 1
    SECOND = 2
    SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class QuestionAnswer:
    """A question, its answer and its family.

    `named` are the words of the question that name an object in the picture, each with the slots that show it;
    `paired`: the answer depends on the first and the second of them. `shown` are the slots that show the answer.
    """

    family: str
    text: str
    answer: str
    named: tuple[tuple[str, frozenset[int]], ...] = ()
    paired: bool = False
    shown: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class VisualInput:
    """The decoder's input for a picture: features [T, D], their cells and slots, and the layout of crops."""

    features: NDArray[np.float32]
    views: tuple[View, ...]  # in prompt order
    slots: NDArray[np.int64]  # [T] index into the grid embedding
    rows: int
    columns: int
    size: float  # bytes that the features cost


@dataclass(kw_only=True)
class Batch:
    """Padded sequences, and the positions of their answers."""

    ids: Tensor  # [B, T]
    mask: Tensor  # [B, 1, T, T] bool: may attend
    positions: Tensor  # [B, T]
    image: Tensor  # [B, T] bool: <im_patch>
    features: Tensor  # [sum of image, D]
    slots: Tensor  # [sum of image]
    places: Places  # of the features, for the codec's context model
    targets: Tensor  # [B, T] the next token where it is part of an answer, else −100
    owner: Tensor  # [B, T] number of the question that a target belongs to, else −1
    supervised: Tensor  # [L, 3] AttentionLabel, sequence and position of a token whose attention is trained
    attended: Tensor  # [L, T] bool: the tokens that it should attend to
    asked: list[QuestionAnswer]


class Packer:
    """Builder of batches from pictures and questions, for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.pad = token_id(tokenizer, "<|endoftext|>")
        names = ("im_start", "im_end", "im_patch", "patch_start", "patch_end", "patch_newline")
        self.token = {name: token_id(tokenizer, f"<{name}>") for name in names}
        self.head = self._ids("<|im_start|>user\n")
        self.turn = self._ids("<|im_end|>\n<|im_start|>assistant\n")
        self.end = self._ids("<|im_end|>")
        self.next_turn = self._ids("\n<|im_start|>user\n")

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prefix(self, picture: VisualInput) -> list[int]:
        """Return the user's header and the picture's tokens: crops first, row by row, the global view last."""
        token, ids = self.token, list(self.head)
        *crops, whole = (len(cells) for _, cells in picture.views)
        for index, count in enumerate(crops):
            ids += [token["patch_start"], *[token["im_patch"]] * count, token["patch_end"]]
            if (index + 1) % picture.columns == 0 and index + 1 < len(crops):
                ids.append(token["patch_newline"])
        return [*ids, token["im_start"], *[token["im_patch"]] * whole, token["im_end"]]

    def pack(self, pictures: list[VisualInput], asked: list[list[QuestionAnswer]], *, independent: bool) -> Batch:
        """Build one sequence for each picture, with all its questions."""
        texts = [a.text for one in asked for a in one]
        answers = [a.answer for one in asked for a in one]
        tokenised = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        text_ids, offsets = iter(tokenised["input_ids"]), iter(tokenised["offset_mapping"])
        answer_ids = iter(self.tokenizer(answers, add_special_tokens=False)["input_ids"])
        rows = []
        supervised: list[tuple[int, int, int]] = []
        targets_of: list[list[int]] = []
        number = 0
        for sequence, (picture, questions) in enumerate(zip(pictures, asked, strict=True)):
            ids = self.prefix(picture)
            start = len(ids)
            patches = [place for place, token in enumerate(ids) if token == self.token["im_patch"]]
            place_of = dict(zip(picture.slots.tolist(), patches, strict=True))
            segments, places = [0] * start, list(range(start))
            targets, owner = [-100] * start, [-1] * start
            for index in range(len(questions)):
                answer = [*next(answer_ids), *self.end]
                block = [*([] if independent or index == 0 else self.next_turn), *next(text_ids), *self.turn, *answer]
                first = len(block) - len(answer) - 1  # the position that predicts the answer's first token
                targets += [-100] * first + answer + [-100]
                owner += [-1] * first + [number] * len(answer) + [-1]
                segments += [index + 1 if independent else 0] * len(block)
                end = len(ids) + len(block) - len(answer) - len(self.turn)  # of the question
                names = sorted((end + place, slots) for place, slots in _named(questions[index], next(offsets)))
                for place, slots in names:
                    if kept := [place_of[slot] for slot in slots if slot in place_of]:  # merging drops some slots
                        supervised.append((AttentionLabel.NAME, sequence, place))
                        targets_of.append(kept)
                if questions[index].paired:
                    for kind, (place, _) in zip((AttentionLabel.FIRST, AttentionLabel.SECOND), names, strict=True):
                        supervised.append((kind, sequence, len(ids) + first))
                        targets_of.append([place])
                if kept := [place_of[slot] for slot in questions[index].shown if slot in place_of]:
                    supervised.append((AttentionLabel.SHOWN, sequence, len(ids) + first))
                    targets_of.append(kept)
                at = start if independent else len(ids)
                places += range(at, at + len(block))
                ids += block
                number += 1
            rows.append((ids, segments, places, targets, owner))
        size = max(len(ids) for ids, *_ in rows)

        def padded(column: int, fill: int) -> Tensor:
            return torch.tensor([row[column] + [fill] * (size - len(row[column])) for row in rows])

        tokens, segment = padded(0, self.pad), padded(1, -1)
        attended = torch.zeros(len(targets_of), size, dtype=torch.bool)
        for row, columns in zip(attended, targets_of, strict=True):
            row[columns] = True
        same = (segment[:, :, None] == segment[:, None, :]) | (segment[:, None, :] == 0)
        mask = same & torch.ones(size, size, dtype=torch.bool).tril()
        return Batch(
            ids=tokens,
            mask=mask[:, None],
            positions=padded(2, 0),
            image=tokens == self.token["im_patch"],
            features=torch.from_numpy(np.concatenate([p.features for p in pictures])),
            slots=torch.from_numpy(np.concatenate([p.slots for p in pictures])),
            places=places_of([view for p in pictures for view in p.views]),
            targets=padded(3, -100),
            owner=padded(4, -1),
            supervised=torch.tensor(supervised, dtype=torch.long).reshape(-1, 3),
            attended=attended,
            asked=[a for one in asked for a in one],
        )


def _named(asked: QuestionAnswer, offsets: list[tuple[int, int]]) -> Iterator[tuple[int, frozenset[int]]]:
    """Yield for each name in a question its last token, counted from the end of the text (−1), and its slots."""
    for word, slots in asked.named:
        if (found := re.search(rf"\b{word}\b", asked.text.lower())) is not None:
            last = max(i for i, (begin, end) in enumerate(offsets) if begin < found.end() and end > found.start())
            yield last - len(offsets), slots
