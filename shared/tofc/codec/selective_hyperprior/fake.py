"""A codec with the selective hyperprior, without training: small and deterministic, for tests.

Promises the same weights for the same seed, and experts that are all used and predict differently. Features are those
of `tofc.codec.fake.fake_features`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tofc.codec.fake import laplace_probabilities, spread_basis
from tofc.codec.integer_net import ACTIVATION_BITS, WEIGHT_BITS
from tofc.codec.selective_hyperprior.config import SelectiveHyperpriorConfig
from tofc.codec.selective_hyperprior.hyper_synthesis import OUT_WEIGHT_BITS
from tofc.codec.selective_hyperprior.weights import SelectiveHyperpriorWeights
from tofc.codec.tables import table_from_probabilities


def fake_selective_hyperprior(
    D: int = 64,
    M: int | None = None,
    H: int = 32,
    seed: int = 0,
    *,
    Q: int = 1,
    features: int | None = None,
    experts: int = 4,
    hyper: int = 3,
    hidden: int = 8,
) -> SelectiveHyperpriorWeights:
    """Make a codec with feature dim D, language-model dim H and Q qualities; without a transform if M is None.

    It has grid embeddings for 4 × 4 and 6 × 6. `features` is n at every rate. The default quality is the finest, with
    steps of half a unit; each coarser quality doubles them. `hyper` is the size of z, and `hidden` the number of hidden
    units of each expert.
    """
    rng = np.random.default_rng(seed)
    m = D if M is None else M
    if m > D:
        raise ValueError(f"M, the number of components, must be at most D = {D}, got {m}")
    config = SelectiveHyperpriorConfig(
        feature_dim=D, components=m, qualities=Q, hidden=H, experts=experts, hyper=hyper, hyper_range=7,
        synthesis_hidden=hidden, analysis_hidden=2 * hidden,
        rates=tuple((features, quality) for quality in range(Q)), presets={"low": 0, "high": Q - 1}, preset="high",
        residual_range=15, tables=32, fraction=1,
    )  # fmt: skip
    scales = config.tables >> config.fraction
    step = np.repeat(0.5 * 2.0 ** np.arange(Q - 1, -1, -1)[:, None], m, axis=1)  # [Q, M]
    basis = spread_basis(rng, D, m)
    # The predicted scales: larger for early components, and smaller where steps are longer.
    mean_scale = np.linspace(0.75, 0.15, m) * scales - 3.5 * np.arange(Q - 1, -1, -1)[:, None]  # [Q, M]

    def matrix(most: float, *shape: int) -> NDArray[np.float64]:
        """Draw weights of magnitudes up to `most` / √inputs."""
        drawn: NDArray[np.float64] = rng.uniform(-1, 1, shape) * most / shape[-1] ** 0.5
        return drawn

    w2 = matrix(1.2, Q, experts, 2, m, hidden)
    w2 -= w2.mean(axis=-1, keepdims=True)  # hidden units are positive: without this, sums would not average 0
    w2[:, :, 0] *= np.linspace(1, 0.15, m)[:, None]  # means vary as much as the components
    b2 = np.zeros((Q, experts, 2, m))
    b2[:, :, 0], b2[:, :, 1] = 0.5, mean_scale[:, None]
    b2 += rng.uniform(-1, 1, (Q, experts, 2, 1)) * np.array([0.2, 1.5])[:, None]
    # h_a and the router see components in steps, which are smaller where steps are longer.
    in_steps = step[:, :1, None] / step[-1, 0]

    def whole(values: NDArray[np.float64], bits: int, most: int) -> NDArray[np.float64]:
        rounded: NDArray[np.float64] = np.rint(values * 2**bits).clip(-most, most)
        return rounded

    return SelectiveHyperpriorWeights(
        config=config,
        mean=rng.standard_normal(D).astype(np.float32),
        analysis=None if M is None else basis.T.astype(np.float32),
        synthesis=None if M is None else basis.astype(np.float32),
        step=step.astype(np.float32),
        h_a_w1=(matrix(1.5, Q, 2 * hidden, m) * in_steps).astype(np.float16),
        h_a_b1=rng.uniform(0, 0.5, (Q, 2 * hidden)).astype(np.float32),
        h_a_w2=matrix(4.0, Q, hyper, 2 * hidden).astype(np.float16),
        h_a_b2=rng.uniform(-1, 1, (Q, hyper)).astype(np.float32),
        router_w=(matrix(1.5, Q, experts, m) * in_steps).astype(np.float16),
        router_b=np.zeros((Q, experts), np.float32),
        h_s_w1=whole(matrix(1.5, Q, experts, hidden, hyper), WEIGHT_BITS, 32767).astype(np.int16),
        h_s_b1=whole(rng.uniform(0, 3, (Q, experts, hidden)), ACTIVATION_BITS + WEIGHT_BITS, 2**30).astype(np.int32),
        h_s_w2=whole(w2, OUT_WEIGHT_BITS, 127).astype(np.int8),
        h_s_b2=whole(b2, ACTIVATION_BITS + OUT_WEIGHT_BITS, 2**30).astype(np.int32),
        expert_tables=table_from_probabilities(rng.uniform(1, 3, (Q, experts))),
        z_tables=table_from_probabilities(rng.uniform(1, 3, (Q, hyper, 15)) / (1 + np.abs(np.arange(-7, 8)))),
        y_tables=table_from_probabilities(laplace_probabilities(scales, config.residual_range)),
        grid_embedding={
            4: (rng.standard_normal((16, H)) * 0.02).astype(np.float32),
            6: (rng.standard_normal((36, H)) * 0.02).astype(np.float16),
        },
    )
