"""A codec with the context model, without training: small and deterministic, for tests of everything but the answers.

Promises the same weights for the same seed, tables shaped like Laplace distributions, and features that cost about
as many bits as real features under a trained codec. Leaves right answers to trained models: no picture was used here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tofc.codec.context.config import ContextConfig
from tofc.codec.context.context_model import STAGES
from tofc.codec.context.weights import ContextWeights
from tofc.codec.integer_net import ACTIVATION_BITS, WEIGHT_BITS
from tofc.codec.tables import table_from_probabilities
from tofc.codec.weights import CodecWeights


def fake_weights(
    D: int = 64,
    M: int = 24,
    H: int = 32,
    seed: int = 0,
    *,
    Q: int = 1,
    features: int | None = None,
    slices: int = 4,
    hidden: int = 16,
) -> ContextWeights:
    """Make a codec with feature dim D, M ≤ D components, language-model dim H and Q qualities.

    It has grid embeddings for 4 × 4 and 6 × 6. `features` is n at every rate. The default quality is the finest, with
    steps of half a unit; each coarser quality doubles them. `slices` is the number of slices and `hidden` the number of
    hidden units of the context model. Its predictions depend on every input that the format allows, and vary around
    those that suit `fake_features`.
    """
    rng = np.random.default_rng(seed)
    if D < M:
        raise ValueError(f"M, the number of components, must be at most D = {D}, got {M}")
    config = ContextConfig(
        feature_dim=D, components=M, slices=tuple(sorted({max(1, M * (i + 1) // slices) for i in range(slices)})),
        channels=3, context_hidden=hidden, qualities=Q, hidden=H,
        rates=tuple((features, quality) for quality in range(Q)), presets={"low": 0, "high": Q - 1}, preset="high",
        residual_range=15, tables=32, fraction=1,
    )  # fmt: skip
    f, s, neighbours = hidden, len(config.slices), (2 * config.reach + 1) ** 2 - 1
    scales, unit = config.tables >> config.fraction, 1 << ACTIVATION_BITS + WEIGHT_BITS
    basis = spread_basis(rng, D, M)
    # The predicted scales: larger for early components, as in a PCA, and smaller where steps are longer.
    mean_scale = np.linspace(0.75, 0.15, M) * scales - 3.5 * np.arange(Q - 1, -1, -1)[:, None]  # [Q, M]

    def matrix(most: float, *shape: int) -> NDArray[np.integer]:
        """Draw weights of magnitudes up to `most` / √inputs."""
        size = int(most * 2**WEIGHT_BITS / shape[-1] ** 0.5)
        return rng.integers(-size, size + 1, shape)

    own = matrix(1.5, s, f, M)
    for index, (first, _) in enumerate(config.spans):
        own[index, :, first:] = 0
    out = matrix(1.4, 2, M, f)
    out -= out.sum(axis=-1, keepdims=True) // f  # hidden units are positive: without this, sums would not average 0
    out[0] = out[0] * np.linspace(64, 8, M, dtype=np.int64)[:, None] >> 6  # means vary as much as the components

    def biases(*shape: int) -> NDArray[np.int32]:
        return rng.integers(0, unit // 2, shape).astype(np.int32)

    return ContextWeights(
        config=config,
        mean=rng.standard_normal(D).astype(np.float32),
        analysis=basis.T.astype(np.float32),
        step=np.repeat(0.5 * 2.0 ** np.arange(Q - 1, -1, -1)[:, None], M, axis=1).astype(np.float32),
        bit_price=np.full(Q, 0.02, np.float32),
        synthesis=basis.astype(np.float32),
        embed_w=matrix(3.0, config.channels, M).astype(np.int16),
        embed_b=biases(Q, config.channels),
        around_w=matrix(3.0, f, neighbours * (config.channels + 1)).astype(np.int16),
        own_w=own.astype(np.int16),
        own_b=biases(Q, STAGES, s, f),
        mid_w=matrix(2.0, s, f, f).astype(np.int16),
        mid_b=biases(Q, s, f),
        out_w=out.astype(np.int16),
        out_b=np.stack([np.full((Q, M), unit // 2), mean_scale * unit], axis=1).astype(np.int32),
        y_tables=table_from_probabilities(laplace_probabilities(scales, config.residual_range)),
        grid_embedding={
            4: (rng.standard_normal((16, H)) * 0.02).astype(np.float32),
            6: (rng.standard_normal((36, H)) * 0.02).astype(np.float16),
        },
    )


def fake_features(weights: CodecWeights, total: int, seed: int = 0) -> NDArray[np.float32]:
    """Make features [total, D]: a few objects on a background, with the spread that `fake_weights` expects."""
    rng = np.random.default_rng(seed)
    c = weights.config
    spread = np.linspace(1.0, 0.15, c.components)
    objects = rng.laplace(size=(4, c.components)) * spread
    y = objects[rng.integers(0, 4, total)] + rng.laplace(size=(total, c.components)) * spread * 0.4
    noise = rng.standard_normal((total, c.feature_dim)) * 0.02
    x = y if weights.synthesis is None else y @ weights.synthesis.T
    return (weights.mean + x + noise).astype(np.float32)


def spread_basis(rng: np.random.Generator, D: int, M: int) -> NDArray[np.float64]:
    """Return M orthonormal vectors [D, M], made without linear algebra, whose bits vary by machine.

    Component m is every M-th number from the m-th on.
    """
    basis = (np.arange(D)[:, None] % M == np.arange(M)) * rng.choice([-1.0, 1.0], (D, 1))
    orthonormal: NDArray[np.float64] = basis / np.sqrt((basis**2).sum(axis=0))
    return orthonormal


def laplace_probabilities(scales: int, limit: int) -> NDArray[np.float64]:
    """Return Laplace-like probabilities, not normalised, of the residuals −limit..limit: [2 × scales, 2 limit + 1].

    From each step to the next they fall to d/256, with a d for each scale. There are two rows for each scale: for a
    mean a little below the whole step, and for one a little above.
    """
    decay = np.linspace(2, 184, scales, dtype=np.int64).tolist()
    residuals = range(-limit, limit + 1)
    symmetric = {d: [2**60 * d ** abs(v) // 256 ** abs(v) for v in residuals] for d in decay}
    return np.array(
        [
            [float(weight * (5 if v * side > 0 else 4)) for v, weight in zip(residuals, symmetric[d], strict=True)]
            for d in decay
            for side in (-1, 1)
        ]
    )
