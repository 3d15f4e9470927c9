"""How much each direction of a feature matters to the answers.

Promises the mean Fisher information of the decoder's answers about a feature: to second order, an error δ in a feature
changes the distribution of answers by ½ δᵀFδ nats. The codec's transform is initialised from it. It is measured on
noisy features, because a decoder that is certain of an answer has no gradient.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tofc_lab.codec.feature_noise import FeatureNoise
from tofc_lab.codec.source import B, Source


def sensitivity(source: Source[B], noise: FeatureNoise, *, batches: int = 40, seed: int = 0) -> Tensor:
    """Return the matrix F [D, D], scaled to a trace of D, in float64 where `in_float64` puts it."""
    fisher: Tensor | None = None
    for index in range(batches):
        packed = source.noisy(index, noise)
        x = packed.features.detach().requires_grad_()
        logits = source.logits(packed, x)
        probabilities = logits.detach().softmax(-1)
        generator = torch.Generator(probabilities.device).manual_seed((seed << 20) + index)
        answers = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, answers, reduction="sum"), x)
        product = in_float64(gradient.T @ gradient)
        fisher = product if fisher is None else fisher + product
    assert fisher is not None, "batches is at least 1"
    return fisher * (len(fisher) / fisher.trace())


def in_float64(x: Tensor) -> Tensor:
    """Return a tensor in float64: on its device, or on the CPU if that is Apple's, which has no such type."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def root(metric: Tensor) -> Tensor:
    """Return the symmetric square root of a positive semidefinite matrix [D, D]."""
    values, vectors = torch.linalg.eigh(metric)
    return cast(Tensor, (vectors * values.clamp(min=0).sqrt()) @ vectors.T)
