from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.codec.kinds import KINDS
from tofc.codec import Codec
from tofc.codec.context.symbols import ContextSymbols
from tofc.codec.fake import fake_features, fake_weights
from tofc.codec.merge import merge
from tofc.codec.tables import symbol_bits

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=[*KINDS, "one slice"])
def codec(request: pytest.FixtureRequest) -> Codec:
    make = KINDS.get(request.param, partial(fake_weights, slices=1))
    return Codec(make(Q=3, seed=1))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("total", "n"), [(36, 36), (36, 12), (36, 1), (16, 7), (169, 40), (25, 24), (1, 1), (4, 2)])
def test_what_is_encoded_is_decoded(codec: Codec, total: int, n: int, seed: int) -> None:
    features = fake_features(codec.weights, total, seed)
    decoded = codec.decode(codec.encode(features, n))
    merged = codec.merge(features, n)
    assert decoded.grid**2 == total
    assert decoded.positions.tolist() == merged.centres.tolist()
    chosen = codec.symbols(merged.centroids, decoded.grid, merged.centres)
    assert (decoded.q == chosen.q).all() and (decoded.features == codec.dequantise(chosen.q, decoded.quality)).all()
    assert decoded.features.dtype == np.float32
    if in_steps(codec):  # less than a step of error for each component, plus what the components cannot express
        assert np.abs(merged.centroids - codec.components(decoded.features)).max() <= 1


def in_steps(codec: Codec) -> bool:
    """Whether components are sent as whole steps, within a range that tables have; indices are of codewords."""
    return codec.config.entropy_model != "index"


def quantised(price: float, y: np.ndarray, cells: np.ndarray, grid: int = 6) -> tuple[Codec, ContextSymbols]:
    codec = Codec(replace(fake_weights(), bit_price=np.array([price], np.float32)))
    return codec, codec.symbols(y, grid, cells)


def test_if_bits_cost_nothing_every_number_becomes_the_nearest_step() -> None:
    y = Codec(fake_weights()).components(fake_features(fake_weights(), 36))
    _, symbols = quantised(0.0, y, np.arange(36))
    assert (symbols.q == np.rint(y)).all()


def test_a_higher_price_of_bits_saves_bytes_and_adds_error() -> None:
    features = fake_features(fake_weights(), 36)
    errors, sizes = [], []
    for price in (0.0, 0.05, 0.2):
        codec, symbols = quantised(price, Codec(fake_weights()).components(features), np.arange(36))
        errors.append(np.square(codec.components(features) - symbols.q).mean())
        sizes.append(len(codec.encode(features)))
    assert errors[0] < errors[1] < errors[2]
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("price", [0.0, 0.03, 0.3])
def test_each_residual_is_the_cheaper_of_two(price: float) -> None:
    """It is the nearest or the next towards 0, by the number's own table, also for numbers beyond the tables."""
    y = Codec(fake_weights()).components(fake_features(fake_weights(), 36)) * np.linspace(1, 12, 24)
    codec, symbols = quantised(price, y, np.arange(36))
    limit, bits = codec.config.residual_range, symbol_bits(codec.weights.y_tables).tolist()
    component = {feature: iter(range(24)) for feature in range(36)}  # of each feature in ascending order
    kept = shorter = clipped = 0
    each = zip(symbols.feature.tolist(), symbols.residual.tolist(), symbols.table.tolist(), strict=True)
    for feature, residual, table in each:
        i = next(component[feature])
        left = y[feature, i] - (symbols.q[feature, i] - residual)
        nearest = min(max(round(left), -limit), limit)
        nearer = nearest - (nearest > 0) + (nearest < 0)
        cost = [(left - r) ** 2 + price * bits[table][r + limit] for r in (nearest, nearer)]
        assert residual == (nearer if cost[1] < cost[0] else nearest) or abs(cost[0] - cost[1]) < 1e-6
        kept, shorter = kept + (residual == nearest), shorter + (residual != nearest)
        clipped += abs(left) > limit + 0.5
    assert kept and clipped and bool(shorter) == (price > 0)


def test_a_coarser_quality_takes_fewer_bytes_and_errs_more() -> None:
    codec = Codec(fake_weights(Q=3))
    features = fake_features(codec.weights, 36)
    packets = [codec.encode(features, 20, quality) for quality in range(3)]
    decoded = [codec.decode(packet) for packet in packets]
    assert [one.quality for one in decoded] == [0, 1, 2]
    assert len(packets[0]) < len(packets[1]) < len(packets[2])
    wanted = codec.merge(features, 20).centroids
    errors = [np.square(codec.components(one.features) - wanted).mean() for one in decoded]
    assert errors[0] > errors[1] > errors[2]
    assert codec.encode(features, 20) == packets[2]  # the default is the finest of these


@pytest.mark.parametrize("quality", [-1, 3])
def test_an_unknown_quality_is_refused(codec: Codec, quality: int) -> None:
    with pytest.raises(ValueError, match=rf"quality must be 0 \(the coarsest\) to 2, got {quality}"):
        codec.encode(fake_features(codec.weights, 36), quality=quality)


def test_the_default_number_of_features() -> None:
    features = fake_features(fake_weights(), 36)
    assert len(Codec(fake_weights()).decode(Codec(fake_weights()).encode(features)).features) == 36
    codec = Codec(fake_weights(features=20))
    assert len(codec.decode(codec.encode(features)).features) == 20
    assert len(codec.decode(codec.encode(features[:16])).features) == 16  # a smaller view has no more
    assert len(codec.decode(codec.encode(features, n=36)).features) == 36


def test_numbers_beyond_the_tables_and_codebooks_are_clipped(codec: Codec) -> None:
    features = fake_features(codec.weights, 16)
    for factor in (1e3, -1e3, 1e30):
        decoded = codec.decode(codec.encode((features * np.float32(factor)).astype(np.float32)))
        y = codec.components(decoded.features)
        if in_steps(codec):
            y *= codec.weights.unit / codec.weights.step[decoded.quality]
            assert np.abs(y).max() <= 2 * codec.config.residual_range + 1e-3
        else:  # the sum of the largest number of each stage
            assert (np.abs(y) <= 128 * codec.weights.scale.sum(axis=0) + 1e-3).all()


@pytest.mark.parametrize("shape", [(36, 63), (36,), (35, 64), (0, 64), (289, 64)])
def test_features_of_another_shape_are_refused(codec: Codec, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        codec.encode(np.zeros(shape, np.float32))


@pytest.mark.parametrize("n", [0, 37, -1])
def test_a_number_of_features_out_of_range_is_refused(codec: Codec, n: int) -> None:
    with pytest.raises(ValueError, match=r"n must be 1 to 36"):
        codec.encode(fake_features(codec.weights, 36), n)


def test_nan_is_refused(codec: Codec) -> None:
    with pytest.raises(ValueError, match="NaN"):
        codec.encode(np.full((36, 64), np.nan, np.float32))


@pytest.mark.parametrize("n", [3, 12, 36])
def test_the_explanation_is_that_of_the_packet(codec: Codec, n: int) -> None:
    features = fake_features(codec.weights, 36, seed=n)
    explained = codec.explain(features, n)
    assert explained.packet == codec.encode(features, n)
    assert explained.feature_bits.shape == (n,) and explained.merged.centroids.shape == (n, codec.config.components)
    assert explained.header_bits == 16
    assert (explained.position_bits < 2) == (n == 36)  # one of three qualities
    assert explained.merged.assignment.shape == (36,)


def test_only_a_codec_with_experts_explains_which_it_used(codec: Codec) -> None:
    features = fake_features(codec.weights, 36)
    explained = codec.explain(features, 12)
    if codec.config.entropy_model == "selective-hyperprior":
        assert explained.experts.tolist() == codec.parse(explained.packet).q[:, 0].tolist()
        assert len({*explained.experts.tolist()}) > 1
    else:
        assert explained.experts is None


def test_only_a_codec_of_indices_explains_them_and_their_bits(codec: Codec) -> None:
    explained = codec.explain(fake_features(codec.weights, 36), 12)
    if codec.config.entropy_model == "index":
        assert (explained.indices == codec.parse(explained.packet).q).all()
        assert explained.stage_bits.shape == (12, codec.config.stages) and (explained.stage_bits > 0).all()
        np.testing.assert_allclose(explained.stage_bits.sum(axis=1), explained.feature_bits)
    else:
        assert explained.indices is None and explained.stage_bits is None


def test_packets_are_within_a_byte_and_a_bit_of_the_ideal(codec: Codec) -> None:
    """Rounding up to whole bytes costs half a byte on average; the coder itself almost nothing."""
    over = []
    for seed in range(60):
        explained = codec.explain(fake_features(codec.weights, 36, seed), 4 + seed % 33)
        over.append(len(explained.packet) - explained.ideal_bytes)
    assert max(over) < 1.1
    assert sum(over) / len(over) < 0.6


def test_merging_ignores_what_the_codec_discards() -> None:
    """Merging compares components: features with equal components are equal, however far apart they are."""
    codec = Codec(fake_weights(seed=1))
    rng = np.random.default_rng(0)
    seen = codec.weights.analysis.astype(np.float64)  # orthonormal rows
    kinds = np.repeat([0, 1], 18)
    noise = rng.standard_normal((36, 64)) * 50
    unseen = noise - noise @ seen.T @ seen
    features = (codec.weights.mean + 2.0 * kinds[:, None] * seen[0] + unseen).astype(np.float32)
    merged = codec.merge(features, 2)
    assert merged.assignment.tolist() == kinds.tolist()
    assert merge(features, 2).assignment.tolist() != kinds.tolist(), "the features alone must merge differently"
    assert merged.centroids.dtype == np.float64 and merged.centroids.shape == (2, 24)
    decoded = codec.decode(codec.encode(features, 2)).features
    assert np.abs((decoded[1] - decoded[0]) @ seen.T - [2.0, *[0.0] * 23]).max() < 0.5


def test_centroids_are_the_components_of_mean_features() -> None:
    codec = Codec(fake_weights(seed=1))
    features = fake_features(codec.weights, 36)
    merged = codec.merge(features, 7)
    np.testing.assert_allclose(merged.centroids, codec.components(merged.means(features)), atol=1e-4)
    np.testing.assert_allclose(
        codec.components(features), (features - codec.weights.mean) @ codec.weights.analysis.T / 0.5, atol=1e-4
    )


def test_the_decoder_needs_no_floats_before_the_dequantiser(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """With wrong values in every float of the codec, a packet still decodes to the same symbols."""
    data = codec.encode(fake_features(codec.weights, 36), 12)
    seen: list[np.ndarray] = []
    floats = {name: array for name, array in codec.weights.arrays().items() if array.dtype.kind == "f"}
    wrong = {name: np.ones_like(array) for name, array in floats.items() if not name.startswith("grid_embedding")}
    damaged = Codec(replace(codec.weights, **wrong))
    for one in (codec, damaged):
        monkeypatch.setattr(one, "dequantise", lambda q, quality: seen.append(q) or np.zeros(0))
        one.decode(data)
    assert seen[0].dtype.kind == "i" and (seen[0] == seen[1]).all()


@pytest.mark.parametrize("quality", range(3))
def test_a_fused_layer_gives_what_the_layer_gives_after_decoding(codec: Codec, quality: int) -> None:
    dim, rng = codec.config.feature_dim, np.random.default_rng(quality)
    weight, bias = rng.standard_normal((7, dim), np.float32), rng.standard_normal(7, np.float32)
    parsed = codec.parse(packet := codec.encode(fake_features(codec.weights, 36, seed=quality), 12, quality))
    wanted = codec.decode(packet).features @ weight.T
    close = {"rtol": 1e-4, "atol": 1e-4 * np.abs(wanted).max()}
    np.testing.assert_allclose(codec.dequantise.fused_with(weight)(parsed.q, quality), wanted, **close)
    np.testing.assert_allclose(codec.dequantise.fused_with(weight, bias)(parsed.q, quality), wanted + bias, **close)


def test_grid_embeddings(codec: Codec) -> None:
    positions = np.array([0, 7, 35])
    rows = codec.grid_embedding(6, positions)
    assert rows.dtype == np.float32 and rows.shape == (3, 32)
    assert (rows == codec.weights.grid_embedding[6][positions].astype(np.float32)).all()
    assert (codec.grid_embedding(5, positions[:2]) == np.zeros((2, 32))).all()


def test_threads_do_not_change_the_bytes() -> None:
    program = (
        "from tofc.codec import Codec\n"
        "from tofc.codec.fake import fake_features, fake_weights\n"
        "codec = Codec(fake_weights(D=1536, seed=2))\n"
        "for seed in range(3):\n"
        "    for total in (36, 81):\n"
        "        print(codec.encode(fake_features(codec.weights, total, seed), 12 + seed).hex())\n"
    )
    printed = []
    for threads in ("1", "2"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, threads) | {"PYTHONPATH": str(ROOT / "shared")}
        run = subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, check=True
        )
        printed.append(run.stdout)
    assert printed[0] == printed[1] and len(printed[0].split()) == 6


def test_the_package_never_loads_torch() -> None:
    program = (
        "import sys, tofc.codec, tofc.codec.fake; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
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


def test_blas_is_limited_to_one_thread() -> None:
    program = (
        "import ctypes, pathlib, numpy as np\n"
        "from tofc.blas_threads import use_one_blas_thread\n"
        "(library,) = pathlib.Path(np.__file__).parents[1].glob('numpy.libs/*openblas*')\n"
        "number = ctypes.CDLL(str(library)).scipy_openblas_get_num_threads64_\n"
        "before = number()\n"
        "use_one_blas_thread()\n"
        "print(before, number())\n"
    )
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    if "not enough values to unpack" in done.stderr:
        pytest.skip("this numpy did not bring its own OpenBLAS")
    assert done.stdout.split()[1:] == ["1"], done.stderr
