"""An index codec without training: small and deterministic, for tests of everything but the answers.

Promises the same weights for the same seed, and predictions that depend on every input that the format allows. Leaves
right answers to trained models: no picture was used here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tofc.codec.index.config import IndexConfig
from tofc.codec.index.weights import IndexWeights
from tofc.codec.integer_net import ACTIVATION_BITS, WEIGHT_BITS

LOGIT_BITS = 4


def fake_index_weights(
    D: int = 64,
    M: int = 24,
    H: int = 32,
    seed: int = 0,
    *,
    K: tuple[int, ...] = (48, 12),
    Q: int = 1,
    E: int = 4,
    features: int | None = None,
    hidden: int = 12,
    channels: int = 3,
) -> IndexWeights:
    """Make a codec with feature dim D, M ≤ D components, K codewords in each stage, and language-model dim H.

    It has Q qualities, E learned numbers, and tables for grids of 4 × 4 and 6 × 6. `features` is n at every rate. Each
    coarser quality doubles the price of a bit.
    """
    rng = np.random.default_rng(seed)
    if D < M:
        raise ValueError(f"M, the number of components, must be at most D = {D}, got {M}")
    table = np.maximum((2.0**20 * 2.0 ** (-np.arange(20 << LOGIT_BITS) / (1 << LOGIT_BITS))).round(), 0)
    config = IndexConfig(
        feature_dim=D, components=M, codewords=K, learned=E, channels=channels, context_hidden=hidden, qualities=Q,
        hidden=H, presets={"low": 0, "high": Q - 1}, preset="high",
        rates=tuple((features, quality) for quality in range(Q)),
        logit_bits=LOGIT_BITS, logit_range=len(table),
    )  # fmt: skip
    f, s, c, unit = hidden, len(K), config.channels, 1 << ACTIVATION_BITS + WEIGHT_BITS
    basis = (np.arange(D)[:, None] % M == np.arange(M)) * rng.choice([-1.0, 1.0], (D, 1))  # as in `codec.fake`
    basis /= np.sqrt((basis**2).sum(axis=0))

    def matrix(most: float, *shape: int) -> NDArray[np.int16]:
        """Draw weights of magnitudes up to `most` / √inputs."""
        size = int(most * 2**WEIGHT_BITS / max(shape[-1], 1) ** 0.5)
        return rng.integers(-size, size + 1, shape).astype(np.int16)

    def biases(most: float, *shape: int) -> NDArray[np.int32]:
        return rng.integers(0, int(most * unit), shape).astype(np.int32)

    return IndexWeights(
        config=config,
        mean=rng.standard_normal(D).astype(np.float32),
        analysis=basis.T.astype(np.float32),
        synthesis=basis.astype(np.float32),
        bit_price=(0.05 * 2.0 ** np.arange(Q - 1, -1, -1)).astype(np.float32),
        # Codewords spread as `fake_features` does; those of residuals less and less.
        scale=(np.linspace(1.0, 0.15, M) / 40 / 3.0 ** np.arange(s)[:, None]).astype(np.float32),
        codebook=rng.integers(-120, 121, (sum(K), M + E)).astype(np.int8),
        embed_w=matrix(1.5, s, c, M + E),
        embed_b=biases(0.5, Q, c),
        around_w=matrix(3.0, f, config.neighbourhood * (c + 1)),
        before_w=matrix(3.0, f, c + 1),
        own_w=matrix(3.0, s - 1, f, c),
        first_b=biases(1.5, Q, s, f),
        mid_w=matrix(2.0, s, f, f),
        mid_b=biases(1.0, Q, s, f),
        out_w=matrix(1.0, s, M + E, f),
        out_b=biases(0.1, Q, s, M + E),
        code_b=biases(0.01, Q, sum(K)) * 16,
        exp2=table.astype(np.uint32),
        place={side: biases(1.0, side * side, f) - unit // 2 for side in (4, 6)},
        grid_embedding={side: (rng.standard_normal((side * side, H)) * 0.02).astype(np.float32) for side in (4, 6)},
    )
