"""Synthesis prompts to train on: messages drawn from a question's pool, in the order that the server gives them.

Promises |M| ~ U(16, 24) messages of the pool of 24, as published, and that a draw depends only on its generator. Leaves
which questions are kept to `filters`, and the template to `edge_server.pacore.prompt`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from edge_server.pacore.messages import SHUFFLE_SEED
from edge_server.pacore.prompt import synthesis_text
from tofc_lab.nano.pacore.pool import Pooled

FEWEST, MOST = 16, 24  # messages of a training prompt


def references(samples: Sequence[str]) -> list[str]:
    """Return messages in the order of a prompt. The same as the server's for a model that does not think."""
    ordered = sorted(samples, key=len)
    random.Random(SHUFFLE_SEED).shuffle(ordered)
    return [one for one in ordered if one]


def synthesis(question: str, samples: Sequence[str]) -> str:
    """Return the user turn that asks for a synthesis of these samples; the question alone if they are all empty."""
    messages = references(samples)
    return synthesis_text(question, messages) if messages else question


def draw(rng: np.random.Generator, pooled: Pooled) -> str:
    """Return a synthesis prompt for a question, with a random part of its pool."""
    count = int(rng.integers(FEWEST, MOST + 1))
    chosen = rng.permutation(len(pooled.samples))[:count]
    return synthesis(pooled.question, [pooled.samples[i] for i in chosen])
