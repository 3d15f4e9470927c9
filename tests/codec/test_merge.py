from __future__ import annotations

from math import exp, sqrt

import numpy as np
import pytest

from tofc.codec.merge import SHARPNESS, merge


def by_definition(features: np.ndarray, n: int, k: int) -> tuple[list[int], list[int], np.ndarray]:
    """Compute DPC-KNN directly from its definition, number by number."""
    rows = features.astype(np.float64).tolist()
    total = len(rows)
    d2 = [[sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in rows] for p in rows]
    mean = sum(map(sum, d2)) / total**2 or 1.0
    k = min(k, total - 1)
    rho = [
        exp(-SHARPNESS * sum(sorted(d2[i][j] for j in range(total) if j != i)[:k]) / (k * mean)) for i in range(total)
    ]
    delta = []
    for i in range(total):
        denser = [j for j in range(total) if rho[j] > rho[i] or (rho[j] == rho[i] and j < i)]
        delta.append(min(sqrt(d2[i][j]) for j in denser) if denser else sqrt(max(map(max, d2))))
    centres = sorted(sorted(range(total), key=lambda i: (-rho[i] * delta[i], i))[:n])
    assignment = [
        centres.index(i) if i in centres else min(range(n), key=lambda c: (d2[i][centres[c]], c)) for i in range(total)
    ]
    means = [np.mean([rows[i] for i in range(total) if assignment[i] == c], axis=0) for c in range(n)]
    return centres, assignment, np.array(means)


@pytest.mark.parametrize("seed", range(25))
def test_merging_follows_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    total, size = int(rng.integers(2, 40)), int(rng.integers(1, 20))
    features = rng.standard_normal((total, size)).astype(np.float32) * float(rng.uniform(0.1, 3)) + 5
    n, k = int(rng.integers(1, total)), int(rng.integers(1, 7))
    merged = merge(features, n, k)
    centres, assignment, means = by_definition(features, n, k)
    assert merged.centres.tolist() == centres
    assert merged.assignment.tolist() == assignment
    np.testing.assert_allclose(merged.centroids, means, rtol=1e-6, atol=1e-6)
    assert merged.centroids.dtype == np.float32


@pytest.mark.parametrize("seed", range(10))
def test_ties_are_broken_by_index(seed: int) -> None:
    """A lattice with repeats: many distances, densities and scores are exactly equal."""
    rng = np.random.default_rng(seed)
    features = rng.integers(0, 3, (30, 4)).astype(np.float32)
    for n in (1, 5, 15, 29):
        merged = merge(features, n)
        centres, assignment, _ = by_definition(features, n, 5)
        assert (merged.centres.tolist(), merged.assignment.tolist()) == (centres, assignment)
        assert set(merged.assignment.tolist()) == set(range(n))  # no cluster is empty
        assert (merged.assignment[merged.centres] == np.arange(n)).all()


def test_equal_features_are_merged_in_order() -> None:
    merged = merge(np.ones((9, 4), np.float32), 3)
    assert merged.centres.tolist() == [0, 1, 2]
    assert merged.assignment.tolist() == [0, 1, 2, 0, 0, 0, 0, 0, 0]
    assert (merged.centroids == 1).all()


def test_distant_features_do_not_underflow() -> None:
    """Even where ρ would underflow to 0 for every feature, the order is that of the densities."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((20, 8)).astype(np.float32)
    features[5:15] += 3
    assert merge(features * 1000, 4).centres.tolist() != [0, 1, 2, 3]
    assert np.isfinite(merge(features * 1e30, 4).centroids).all()


def test_n_equal_to_their_number_returns_the_features_unchanged() -> None:
    features = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    merged = merge(features, 16)
    assert (merged.centroids == features).all()
    assert merged.centres.tolist() == merged.assignment.tolist() == list(range(16))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_other_features_are_averaged_over_the_same_clusters(dtype: type) -> None:
    rng = np.random.default_rng(0)
    features, other = rng.standard_normal((30, 6)).astype(dtype), rng.standard_normal((30, 3)).astype(np.float32)
    merged = merge(features, 8)
    assert merged.centroids.dtype == dtype and merged.means(other).dtype == np.float32
    assert (merged.means(features) == merged.centroids).all()
    for i, mean in enumerate(merged.means(other)):
        np.testing.assert_allclose(mean, other[merged.assignment == i].mean(axis=0, dtype=np.float64), rtol=1e-6)
    assert merge(features, 30).means(other) is other


@pytest.mark.parametrize("n", [-1, 0, 17])
def test_n_out_of_range(n: int) -> None:
    with pytest.raises(ValueError, match=r"n must be 1 to 16"):
        merge(np.ones((16, 8), np.float32), n)


@pytest.mark.parametrize("shape", [(4,), (0, 4), (4, 0), (2, 2, 2)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        merge(np.ones(shape, np.float32), 1)


def test_nan_and_k_below_1_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        merge(np.full((4, 2), np.nan, np.float32), 2)
    with pytest.raises(ValueError, match="neighbours"):
        merge(np.ones((4, 2), np.float32), 2, k=0)
