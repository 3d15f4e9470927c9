from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import shared.codec.hyperprior as hyperprior
from shared.codec import Codec
from shared.codec.fake import fake_features, fake_weights
from shared.codec.merge import merge

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=[1, 3], ids=["one expert", "three experts"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return Codec(fake_weights(E=request.param, Q=3, seed=1))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("total", "n"), [(36, 36), (36, 12), (36, 1), (16, 7), (169, 40), (25, 24), (1, 1), (4, 2)])
def test_what_is_encoded_is_decoded(codec: Codec, total: int, n: int, seed: int) -> None:
    features = fake_features(codec.weights, total, seed)
    decoded = codec.decode(codec.encode(features, n))
    merged = merge(features, n, 5)
    assert decoded.grid**2 == total
    assert decoded.positions.tolist() == merged.centres.tolist()
    assert decoded.features.dtype == np.float32
    # Less than a step of error for each component, plus what the components cannot express.
    y = (merged.centroids - codec.weights.mean) @ codec.weights.analysis.T
    y_hat = (decoded.features - codec.weights.mean) @ codec.weights.analysis.T
    assert np.abs(y - y_hat).max() <= codec.weights.step[decoded.quality].max()


def test_bits_that_cost_nothing_buy_the_nearest_step() -> None:
    features = fake_features(fake_weights(), 36)
    errors, sizes = [], []
    for price in (0.0, 0.05, 0.2):
        codec = Codec(replace(fake_weights(), bit_price=np.array([price], np.float32)))
        packet = codec.encode(features)
        y, y_hat = (
            (one - codec.weights.mean) @ codec.weights.analysis.T for one in (features, codec.decode(packet).features)
        )
        errors.append(np.abs(y - y_hat))
        sizes.append(len(packet))
    assert errors[0].max() <= 0.25 + 1e-4  # steps are half a unit
    assert errors[0].mean() < errors[1].mean() < errors[2].mean()
    assert sizes[0] > sizes[1] > sizes[2]


def test_a_coarser_quality_takes_fewer_bytes_and_errs_more() -> None:
    codec = Codec(fake_weights(Q=3))
    features = fake_features(codec.weights, 36)
    packets = [codec.encode(features, 20, quality) for quality in range(3)]
    decoded = [codec.decode(packet) for packet in packets]
    assert [one.quality for one in decoded] == [0, 1, 2]
    assert len(packets[0]) < len(packets[1]) < len(packets[2])
    wanted = merge(features, 20, 5).centroids
    errors = [np.square(one.features - wanted).mean() for one in decoded]
    assert errors[0] > errors[1] > errors[2]
    assert codec.encode(features, 20) == packets[2]  # the default is the finest of these


@pytest.mark.parametrize("quality", [-1, 3])
def test_qualities_that_there_are_not(codec: Codec, quality: int) -> None:
    with pytest.raises(ValueError, match=f"quality {quality}; this codec has 0"):
        codec.encode(fake_features(codec.weights, 36), quality=quality)


def test_the_default_number_of_features() -> None:
    features = fake_features(fake_weights(), 36)
    assert len(Codec(fake_weights()).decode(Codec(fake_weights()).encode(features)).features) == 36
    codec = Codec(fake_weights(features=20))
    assert len(codec.decode(codec.encode(features)).features) == 20
    assert len(codec.decode(codec.encode(features[:16])).features) == 16  # a smaller view has no more
    assert len(codec.decode(codec.encode(features, n=36)).features) == 36


def test_what_is_out_of_range_is_clipped(codec: Codec) -> None:
    features = fake_features(codec.weights, 16)
    for factor in (1e3, -1e3, 1e30):
        decoded = codec.decode(codec.encode((features * np.float32(factor)).astype(np.float32)))
        y = (decoded.features - codec.weights.mean) @ codec.weights.analysis.T / codec.weights.step[decoded.quality]
        assert np.abs(y).max() <= 2 * codec.config.residual_range + 1e-3


@pytest.mark.parametrize("shape", [(36, 63), (36,), (35, 64), (0, 64), (289, 64)])
def test_shapes_that_are_no_view(codec: Codec, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        codec.encode(np.zeros(shape, np.float32))


@pytest.mark.parametrize("n", [0, 37, -1])
def test_counts_that_cannot_be(codec: Codec, n: int) -> None:
    with pytest.raises(ValueError, match=r"1\.\.36"):
        codec.encode(fake_features(codec.weights, 36), n)


def test_nan_is_refused(codec: Codec) -> None:
    with pytest.raises(ValueError, match="NaN"):
        codec.encode(np.full((36, 64), np.nan, np.float32))


@pytest.mark.parametrize("n", [3, 12, 36])
def test_the_explanation_is_of_the_packet(codec: Codec, n: int) -> None:
    features = fake_features(codec.weights, 36, seed=n)
    told = codec.explain(features, n)
    assert told.packet == codec.encode(features, n)
    assert told.feature_bits.shape == told.experts.shape == (n,)
    assert told.header_bits == 16
    assert (told.place_bits < 2) == (n == 36)  # one of three qualities
    assert told.merged.assignment.shape == (36,)
    assert told.experts.max() < codec.config.experts


def test_packets_are_within_a_byte_and_a_bit_of_the_ideal(codec: Codec) -> None:
    """Rounding up to whole bytes costs half a byte on average; the coder itself next to nothing."""
    over = []
    for seed in range(60):
        told = codec.explain(fake_features(codec.weights, 36, seed), 4 + seed % 33)
        over.append(len(told.packet) - told.ideal_bytes)
    assert max(over) < 1.1
    assert sum(over) / len(over) < 0.6


def test_each_feature_gets_its_cheapest_expert() -> None:
    codec = Codec(replace(fake_weights(E=3, seed=1), bit_price=np.zeros(1, np.float32)))
    rng = np.random.default_rng(0)
    q = rng.integers(-3, 4, (50, 24))
    chooser = hyperprior.Chooser(codec.weights)
    chosen = chooser.choose(q, 0)
    assert (chosen.q == q).all()
    assert set(chosen.experts.tolist()) == {0, 1, 2}
    limit = codec.config.residual_range
    for expert in range(3):
        experts = np.full(50, expert)
        mean, table = hyperprior.predict(codec.weights, chosen.z, experts, 0)
        fits = (np.abs(q - mean) <= limit).all(axis=1)
        residuals = np.clip(q - mean, -limit, limit)
        other = replace(chosen, experts=experts, residuals=residuals, mean=mean, table=table)
        assert (chooser.bits(chosen) <= chooser.bits(other) + 1e-9)[fits].all()


def test_an_expert_that_clips_less_wins() -> None:
    weights = fake_weights(E=2, seed=1)
    zero, b2 = np.zeros_like(weights.hs_w2), weights.hs_b2.copy()
    b2[0, 0, :24], b2[0, 1, :24] = -15 << 7, 15 << 7  # one expert expects −15 everywhere, the other 15
    chooser = hyperprior.Chooser(replace(weights, hs_w2=zero, hs_b2=b2))
    assert chooser.choose(np.full((1, 24), 20), 0).experts.tolist() == [1]
    assert chooser.choose(np.full((1, 24), -20), 0).experts.tolist() == [0]


def test_the_integer_network_is_the_documented_one() -> None:
    """Against plain Python integers, negative sums and both clips included."""
    weights = fake_weights(M=6, D=12, E=2, Q=2, seed=3)
    c = weights.config
    for expert in range(2):
        for z in ([0, 0], [4, -4], [-4, -3], [1, 2]):
            mean, table = hyperprior.h_s(weights, np.array([z]), expert, 1)
            w1, b1 = weights.hs_w1[expert].tolist(), weights.hs_b1[1, expert].tolist()
            w2, b2 = weights.hs_w2[expert].tolist(), weights.hs_b2[1, expert].tolist()
            h = [min(max((w[0] * z[0] + w[1] * z[1] + b) // 2**c.shift1, 0), 255) for w, b in zip(w1, b1, strict=True)]
            o = [sum(x * y for x, y in zip(w, h, strict=True)) + b for w, b in zip(w2, b2, strict=True)]
            place = [v // 2 ** (c.shift2 - 1) for v in o[:6]]
            assert mean.tolist() == [[min(max(v // 2, -15), 15) for v in place]]
            scale = [min(max(v // 2**c.shift2, 0), 15) for v in o[6:]]
            assert table.tolist() == [[2 * s + v % 2 for s, v in zip(scale, place, strict=True)]]


def test_the_decoder_needs_no_floats_before_the_dequantiser(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every float of the codec spoilt, a packet still decodes to the same symbols."""
    data = codec.encode(fake_features(codec.weights, 36), 12)
    seen: list[np.ndarray] = []
    names = ("mean", "analysis", "synthesis", "ha_w1", "ha_b1", "ha_w2", "ha_b2", "step", "bit_price")
    spoilt = Codec(replace(codec.weights, **{name: np.ones_like(getattr(codec.weights, name)) for name in names}))
    for one in (codec, spoilt):
        monkeypatch.setattr(one, "dequantise", lambda q, quality: seen.append(q) or np.zeros(0))
        one.decode(data)
    assert seen[0].dtype.kind == "i" and (seen[0] == seen[1]).all()
    for name in ("mean", "table"):
        index = ("mean", "table").index(name)
        assert hyperprior.predict(codec.weights, np.zeros((2, 2), int), np.zeros(2, int), 0)[index].dtype == np.int64


def test_grid_embeddings(codec: Codec) -> None:
    positions = np.array([0, 7, 35])
    rows = codec.grid_embedding(6, positions)
    assert rows.dtype == np.float32 and rows.shape == (3, 32)
    assert (rows == codec.weights.grid_embedding[6][positions].astype(np.float32)).all()
    assert (codec.grid_embedding(5, positions[:2]) == np.zeros((2, 32))).all()


def test_threads_do_not_change_the_bytes() -> None:
    program = (
        "from shared.codec import Codec\n"
        "from shared.codec.fake import fake_features, fake_weights\n"
        "codec = Codec(fake_weights(D=1536, E=3, seed=2))\n"
        "for seed in range(3):\n"
        "    for total in (36, 81):\n"
        "        print(codec.encode(fake_features(codec.weights, total, seed), 12 + seed).hex())\n"
    )
    printed = []
    for threads in ("1", "2"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, threads) | {"PYTHONPATH": str(ROOT)}
        run = subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, check=True
        )
        printed.append(run.stdout)
    assert printed[0] == printed[1] and len(printed[0].split()) == 6


def test_the_package_never_loads_torch() -> None:
    program = (
        "import sys, shared.codec, shared.codec.fake; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_threads_may_share_a_codec(codec: Codec) -> None:
    views = [fake_features(codec.weights, 36, seed) for seed in range(40)]
    alone = [codec.encode(view, 12) for view in views]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda view: codec.encode(view, 12), views))
        decoded = list(pool.map(codec.decode, together))
    assert together == alone
    for packet, one in zip(alone, decoded, strict=True):
        assert (one.features == codec.decode(packet).features).all()
