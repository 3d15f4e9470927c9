"""Sampled answers at temperature 1, many of each prompt at once: equal beginnings are computed once.

    prompts ─ forward ─ next token's distribution ─ multinomial draw ─→ n samples spread over a tree of beginnings
                 ↑_____________ each beginning that was drawn, until it ends _____________|

Promises independent samples of the decoder's distribution, which depend only on the prompt's own generator, and the
greedy answer beside them. Answers of nano have one to three tokens, so a few forwards give all samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tofc_lab.nano.answerer import Answerer
from tofc_lab.nano.packing import Packer, VisualInput
from tofc_lab.nano.pacore.blocks import Block, pack

LONGEST = 10  # tokens of an answer, its end included; a sample that is longer is unfinished

Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """The answers to one prompt. An empty text: unfinished, or nothing said."""

    greedy: str
    samples: tuple[str, ...]  # in random order


@dataclass(kw_only=True)
class _Tree:
    """The samples of one prompt while they are drawn: how many have each beginning."""

    open: dict[Ids, int]
    rng: np.random.Generator
    greedy: Ids = ()
    greedy_ended: bool = False
    ended: dict[Ids, int] = field(default_factory=dict)

    def beginnings(self) -> list[Ids]:
        """Return the beginnings whose next token is needed."""
        wanted = list(self.open)
        if not self.greedy_ended and self.greedy not in self.open:
            wanted.append(self.greedy)
        return wanted

    def advance(self, beginnings: Sequence[Ids], probabilities: np.ndarray, end: int) -> None:
        """Draw the next tokens: `probabilities` are [beginnings, vocabulary]."""
        following: dict[Ids, int] = {}
        greedy = self.greedy
        for beginning, p in zip(beginnings, probabilities, strict=True):
            if not self.greedy_ended and beginning == greedy:
                token = int(p.argmax())
                self.greedy_ended = token == end
                self.greedy = greedy if self.greedy_ended else (*greedy, token)
            if (count := self.open.get(beginning, 0)) == 0:
                continue
            drawn = self.rng.multinomial(count, p / p.sum())
            for token in map(int, np.flatnonzero(drawn)):
                if token == end:
                    self.ended[beginning] = self.ended.get(beginning, 0) + int(drawn[token])
                else:
                    following[*beginning, token] = int(drawn[token])
        self.open = following


@torch.no_grad()
def sample(
    answerer: Answerer,
    packer: Packer,
    pictures: Sequence[VisualInput | None],
    prompts: Sequence[Sequence[Sequence[int]]],
    samples: int,
    rngs: Sequence[Sequence[np.random.Generator]],
) -> list[list[Sampled]]:
    """Answer the prompts about each picture (`blocks.prompt_ids`) `samples` times, and once greedily."""
    trees = [[_Tree(open={(): samples} if samples else {}, rng=rng) for rng in of_picture] for of_picture in rngs]
    (end,) = packer.end
    for _ in range(LONGEST):
        asked = [
            [(tree, prompt, tree.beginnings()) for tree, prompt in zip(*one, strict=True)]
            for one in zip(trees, prompts, strict=True)
        ]
        blocks = [[Block(ids=[*prompt, *begin]) for _, prompt, begun in one for begin in begun] for one in asked]
        if not any(blocks):
            break
        kept = [index for index, one in enumerate(blocks) if one]
        batch = pack(packer, [pictures[i] for i in kept], [blocks[i] for i in kept], answerer.projector.in_features)
        probabilities = torch.softmax(answerer(batch).double(), -1).numpy()  # [blocks, vocabulary]
        at = 0
        for tree, _, begun in (question for one in asked for question in one):
            if begun:
                tree.advance(begun, probabilities[at : at + len(begun)], end)
                at += len(begun)
    return [[_texts(tree, packer, samples) for tree in of_picture] for of_picture in trees]


def _texts(tree: _Tree, packer: Packer, samples: int) -> Sampled:
    texts = [str(packer.tokenizer.decode(list(ids))) for ids, count in tree.ended.items() for _ in range(count)]
    texts += [""] * (samples - len(texts))
    order = tree.rng.permutation(samples)
    greedy = str(packer.tokenizer.decode(list(tree.greedy))) if tree.greedy_ended else ""
    return Sampled(greedy=greedy, samples=tuple(texts[i] for i in order))
