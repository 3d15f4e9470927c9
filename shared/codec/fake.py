"""A codec without training: small, deterministic, good enough to test everything that is not neural.

Promises the same weights for the same seed, tables shaped like Laplace distributions, and features that
these weights code as cheaply as a trained codec codes real ones. Leaves answers out: nothing here has
seen a picture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.codec.tables import table_from_probabilities
from shared.codec.weights import CodecConfig, CodecWeights


def fake_weights(
    D: int = 64,
    M: int = 24,
    Z: int = 2,
    H: int = 32,
    E: int = 1,
    seed: int = 0,
    *,
    Q: int = 1,
    features: int | None = None,
) -> CodecWeights:
    """A codec of feature dim D, M components, Z hyper symbols, language-model dim H, E experts and Q qualities.

    Needs D >= M. Grid embeddings are there for 4 × 4 and 6 × 6. ``features`` is every rate's n; the default quality is
    the finest, whose steps are half a unit, each coarser one's twice as long.
    """
    rng = np.random.default_rng(seed)
    config = CodecConfig(
        feature_dim=D, components=M, hyper=Z, hyper_hidden=16, experts=E, qualities=Q, hidden=H,
        rates=tuple((features, quality) for quality in range(Q)), presets={"low": 0, "high": Q - 1}, preset="high",
        shift1=2, shift2=7, residual_range=15, hyper_range=4, tables=32, fraction=1,
    )  # fmt: skip
    f, scales = config.hyper_hidden, config.tables >> config.fraction
    if D < M:
        raise ValueError(f"{M} components of {D} numbers; there cannot be more components than numbers")
    # Orthonormal without linear algebra, which differs between machines: every M-th number, by turns.
    basis = (np.arange(D)[:, None] % M == np.arange(M)) * rng.choice([-1.0, 1.0], (D, 1))  # [D, M]
    basis /= np.sqrt((basis**2).sum(axis=0))
    decay = np.linspace(2, 184, scales, dtype=np.int64)  # of the residuals under each scale, in 256ths a step
    # Early components vary more, as principal components do, and more so where z is large.
    wanted = np.linspace(0.75, 0.15, M) * scales * 128
    hs_w2 = rng.integers(-20, 21, (E, 2 * M, f))
    hs_b2 = np.concatenate([np.zeros((E, M)), wanted + rng.integers(-200, 200, (E, M))], axis=1)
    return CodecWeights(
        config=config,
        mean=rng.standard_normal(D).astype(np.float32),
        analysis=basis.T.astype(np.float32),
        step=np.repeat(0.5 * 2.0 ** np.arange(Q - 1, -1, -1)[:, None], M, axis=1).astype(np.float32),
        bit_price=np.full(Q, 0.02, np.float32),
        synthesis=basis.astype(np.float32),
        ha_w1=(rng.standard_normal((f, M)) * 0.1).astype(np.float32),
        ha_b1=np.zeros((Q, f), np.float32),
        ha_w2=(rng.standard_normal((Z, f)) * 0.3).astype(np.float32),
        ha_b2=np.zeros(Z, np.float32),
        hs_w1=rng.integers(-8, 9, (E, f, Z)).astype(np.int8),
        hs_b1=rng.integers(0, 16, (Q, E, f)).astype(np.int32),
        hs_w2=hs_w2.astype(np.int8),
        hs_b2=np.stack(
            [np.concatenate([hs_b2[:, :M], hs_b2[:, M:] - 448 * level], axis=1) for level in range(Q - 1, -1, -1)]
        ).astype(np.int32),
        z_tables=np.repeat(table_from_probabilities(_laplace([96] * Z, config.hyper_range))[None], Q, axis=0),
        y_tables=table_from_probabilities(_laplace(np.repeat(decay, 2).tolist(), config.residual_range)),
        expert_table=np.repeat(table_from_probabilities(np.arange(E, 0, -1))[None], Q, axis=0) if E > 1 else None,
        grid_embedding={
            4: (rng.standard_normal((16, H)) * 0.02).astype(np.float32),
            6: (rng.standard_normal((36, H)) * 0.02).astype(np.float16),
        },
    )


def fake_features(weights: CodecWeights, total: int, seed: int = 0) -> NDArray[np.float32]:
    """Features [total, D] with a few objects on a background, of the spread that ``fake_weights`` expects."""
    rng = np.random.default_rng(seed)
    c = weights.config
    spread = np.linspace(1.0, 0.15, c.components)
    objects = rng.laplace(size=(4, c.components)) * spread
    y = objects[rng.integers(0, 4, total)] + rng.laplace(size=(total, c.components)) * spread * 0.4
    noise = rng.standard_normal((total, c.feature_dim)) * 0.02
    return (weights.mean + y @ weights.synthesis.T + noise).astype(np.float32)


def _laplace(decay: list[int], limit: int) -> NDArray[np.float64]:
    """Laplace-like weights [T, 2 limit + 1] of −limit..limit: each step out is worth decay/256 of the one before."""
    return np.array([[float(2**60 * d ** abs(v) // 256 ** abs(v)) for v in range(-limit, limit + 1)] for d in decay])
