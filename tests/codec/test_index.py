"""The index codec: its order, its counts, and a second decoder that reads the same indices."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.codec.second_decoder import PlainDecoder
from tofc.codec import Codec, CodecError
from tofc.codec.fake import fake_features
from tofc.codec.files import load_weights
from tofc.codec.index.fake import fake_index_weights
from tofc.codec.index.logits import OutputWeights
from tofc.codec.index.probabilities import WEIGHT_MAX, Counts, spans_of
from tofc.codec.index.waves import earlier_neighbours, waves
from tofc.codec.range_coder import COUNT_BITS

NANO = Path(__file__).parents[2] / "models" / "nano"


def test_neighbours_are_in_earlier_waves() -> None:
    cells = np.sort(np.random.default_rng(0).permutation(81)[:50])
    rows, ends = waves(9, cells)
    order = np.full(51, -1)  # the last is absent
    for place, (first, end) in enumerate(pairwise([0, *ends])):
        order[rows[first:end]] = place
    assert sorted(rows.tolist()) == list(range(50)) and (order[:50] >= 0).all()
    assert (order[earlier_neighbours(9, cells, 2)] < order[:50, None]).all()


@pytest.mark.parametrize("weights", [[1, 0, 0], [WEIGHT_MAX] * 8192, [0] * 4095 + [1], [5, 3, 1]])
def test_every_index_has_a_count(weights: list[int]) -> None:
    size = len(weights)
    every = [spans_of(np.array([weights]), np.array([symbol])) for symbol in range(size)]
    first, count = np.array(every)[..., 0].T
    assert first[0] == 0 and (first[1:] == (first + count)[:-1]).all() and (count >= 1).all()
    assert first[-1] + count[-1] == 1 << COUNT_BITS
    counts = Counts(np.array(weights))
    for found in zip(range(size), first.tolist(), count.tolist(), strict=True):
        assert counts.find(found[1]) == counts.find(found[1] + found[2] - 1) == found


@pytest.mark.parametrize("large", [1, 30, 32767, 10**6])
def test_logits_are_exact_in_both_types(large: int) -> None:
    rng = np.random.default_rng(large)
    rows, bias = rng.integers(-128, 128, (700, 33)), rng.integers(-(2**20), 2**20, (2, 700)).astype(np.int32)
    query = rng.integers(-large, large + 1, (5, 33)) + rng.integers(0, 1024, (5, 33)) / 1024
    found = OutputWeights(rows.astype(np.float64), bias, 5).logits(query, 1)
    whole = np.floor(query).clip(-32767, 32767).astype(np.int64)
    assert found.tolist() == ((whole @ rows.T + bias[1]) >> 9).tolist()
    assert found.dtype == (np.float32 if large <= 30 else np.float64)


@pytest.mark.parametrize("sizes", [(30,), (20, 9, 5)])
def test_the_second_decoder_reads_the_same_indices(sizes: tuple[int, ...], tmp_path: Path) -> None:
    weights = fake_index_weights(D=12, M=6, H=4, Q=3, K=sizes, hidden=5)
    weights.save(tmp_path)
    codec, plain = Codec(weights), PlainDecoder.load(tmp_path)
    for total, n in ((36, 36), (36, 12), (16, 5), (25, 9), (4, 3), (1, 1), (81, 60)):
        for quality in range(3):
            packet = codec.encode(fake_features(weights, total, seed=total + n), n, quality)
            found = codec.parse(packet)
            wanted = {"grid": found.grid, "cells": found.positions.tolist(), "quality": quality, "q": found.q.tolist()}
            assert plain.decode(packet) == [wanted]


def test_if_bits_cost_nothing_every_feature_becomes_the_nearest_codeword() -> None:
    weights = replace(fake_index_weights(K=(40,)), bit_price=np.zeros(1, np.float32))
    codec = Codec(weights)
    y = codec.components(fake_features(weights, 36))
    (codewords,) = weights.codewords()
    nearest = np.square(y[:, None] - codewords).sum(axis=2).argmin(axis=1)
    assert codec.symbols(y, 6, np.arange(36)).q[:, 0].tolist() == nearest.tolist() and len({*nearest.tolist()}) > 5


def test_a_higher_price_of_bits_saves_bytes() -> None:
    weights = fake_index_weights(Q=1)
    features = fake_features(weights, 36, seed=3)
    dear = replace(weights, bit_price=weights.bit_price * 50)
    assert len(Codec(dear).encode(features)) < len(Codec(weights).encode(features))


def test_features_are_the_sums_of_their_codewords() -> None:
    weights = fake_index_weights(K=(20, 9))
    decoded = Codec(weights).decode(Codec(weights).encode(fake_features(weights, 36)))
    words = weights.codebook[:, : weights.config.components] * np.repeat(weights.scale, (20, 9), axis=0)
    assert weights.synthesis is not None
    wanted = (words[decoded.q[:, 0]] + words[20 + decoded.q[:, 1]]) @ weights.synthesis.T + weights.mean
    np.testing.assert_allclose(decoded.features, wanted, rtol=1e-4, atol=1e-5)


def test_nano_has_an_index_codec_of_a_megabyte() -> None:
    weights = load_weights(NANO)
    assert weights.config.entropy_model == "index"
    assert (NANO / "codec.safetensors").stat().st_size < 1.3e6


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("bit_price", np.array([-1], np.float32), "bit_price must not be negative"),
        ("scale", np.zeros((2, 24), np.float32), "scale must be positive"),
        ("exp2", np.arange(320, dtype=np.uint32), "exp2 must fall"),
    ],
)
def test_invalid_tensors_are_refused(name: str, value: np.ndarray, words: str) -> None:
    with pytest.raises(CodecError, match=words):
        replace(fake_index_weights(), **{name: value})
