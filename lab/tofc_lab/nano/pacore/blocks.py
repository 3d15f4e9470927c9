"""Many prompts about one picture as one sequence: all attend to the picture's rows, and each to itself.

    picture, header [T0]  ─┬─ block 0: text of a user turn, header of the answer, tokens of the answer
                           ├─ block 1 …

Promises the same tokens and positions as in a prompt of its own (`tofc.model.prompt`), for any text in the user turn.
Unlike `tofc_lab.nano.packing` it labels no attention, so that texts need not be questions of nano's world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tofc_lab.codec.places import Places
from tofc_lab.nano.packing import Batch, Packer, QuestionAnswer, VisualInput


@dataclass(frozen=True, kw_only=True)
class Block:
    """One prompt about a picture: `ids` follow the picture's rows. The last `answer` of them are to be predicted."""

    ids: Sequence[int]
    answer: int = 0  # 0: read the logits after the last token


def prompt_ids(packer: Packer, texts: Sequence[str]) -> list[list[int]]:
    """Return for each text of a user turn the ids that follow the picture, up to the header of the answer."""
    encoded = packer.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    return [[*ids, *packer.turn] for ids in encoded]


def answer_ids(packer: Packer, answers: Sequence[str]) -> list[list[int]]:
    """Return the tokens of answers, the end included."""
    return [[*ids, *packer.end] for ids in packer.tokenizer(list(answers), add_special_tokens=False)["input_ids"]]


def pack(
    packer: Packer, pictures: Sequence[VisualInput | None], blocks: Sequence[Sequence[Block]], width: int
) -> Batch:
    """Build one sequence for each picture; None: its blocks have no picture.

    The logits of `Answerer.forward` come in the order of the blocks: one row for each token of an answer, or one row
    for a block without an answer. `width`: the numbers of a feature.
    """
    rows = []
    number = 0
    for picture, of_picture in zip(pictures, blocks, strict=True):
        ids = list(packer.head) if picture is None else packer.prefix(picture)
        start = len(ids)
        segments, places, targets, owner = [0] * start, list(range(start)), [-100] * start, [-1] * start
        for index, block in enumerate(of_picture):
            size = len(block.ids)
            wanted = [-100] * size
            if block.answer:  # position i predicts token i + 1
                wanted[size - block.answer - 1 : size - 1] = list(block.ids[size - block.answer :])
            else:
                wanted[-1] = 0
            targets += wanted
            owner += [number if one >= 0 else -1 for one in wanted]
            segments += [index + 1] * size
            places += range(start, start + size)
            ids += block.ids
            number += 1
        shows = [one == packer.token["im_patch"] for one in ids[:start]] + [False] * (len(ids) - start)
        rows.append((ids, segments, places, targets, owner, shows))  # text may contain <im_patch>, if it was sampled
    size = max(len(ids) for ids, *_ in rows)

    def padded(column: int, fill: int) -> torch.Tensor:
        return torch.tensor([row[column] + [fill] * (size - len(row[column])) for row in rows])

    tokens, segment = padded(0, packer.pad), padded(1, -1)
    same = (segment[:, :, None] == segment[:, None, :]) | (segment[:, None, :] == 0)
    shown = [picture for picture in pictures if picture is not None]
    features = [one.features for one in shown] or [np.zeros((0, width), np.float32)]
    slots = [one.slots for one in shown] or [np.zeros(0, np.int64)]
    return Batch(
        ids=tokens,
        mask=(same & torch.ones(size, size, dtype=torch.bool).tril())[:, None],
        positions=padded(2, 0),
        image=padded(5, False).bool(),
        features=torch.from_numpy(np.concatenate(features)),
        slots=torch.from_numpy(np.concatenate(slots)),
        places=Places(torch.zeros(0), torch.zeros(0)),  # no codec is trained on these prompts
        targets=padded(3, -100),
        owner=padded(4, -1),
        supervised=torch.zeros(0, 3, dtype=torch.long),
        attended=torch.zeros(0, size, dtype=torch.bool),
        asked=list[QuestionAnswer](),
    )
