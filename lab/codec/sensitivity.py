"""How much each direction of a feature matters to the answers.

Promises the mean Fisher information of the decoder's answers about a feature: to second order, an error
δ in a feature changes the answers' distribution by ½ δᵀFδ nats. It is what tells the codec's transform
where to begin; measured on coarsened features, since a decoder that is sure of an answer has no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lab.nano.answerer import Answerer, ask, merging, picture
from lab.nano.features import Cached
from lab.nano.packing import Packer
from lab.nano.rough import Rough


def sensitivity(
    answerer: Answerer,
    packer: Packer,
    pictures: Sequence[Cached],
    rough: Rough,
    *,
    batches: int = 40,
    batch: int = 24,
    turns: int = 14,
    seed: int = 0,
    autocast: bool = True,
) -> Tensor:
    """The matrix F [D, D], scaled to a trace of D."""
    dim = pictures[0].features.shape[1]
    fisher = torch.zeros(dim, dim, dtype=torch.float64)
    for index in range(batches):
        rng = np.random.default_rng([seed, 31, index])
        chosen = [pictures[i] for i in rng.integers(len(pictures), size=batch)]
        shown = [picture(one, merging()) for one in chosen]
        shown = [replace(one, features=rough.draw(rng, one.features)) for one in shown]
        packed = packer.pack(shown, [ask(rng, one, turns) for one in chosen], independent=True)
        x = packed.features.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = answerer(packed, x).float()
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        answers = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, answers, reduction="sum"), x)
        fisher += (gradient.T @ gradient).double()
    return cast(Tensor, fisher * (dim / fisher.trace()))


def root(metric: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix [D, D]."""
    values, vectors = torch.linalg.eigh(metric)
    return cast(Tensor, (vectors * values.clamp(min=0).sqrt()) @ vectors.T)
